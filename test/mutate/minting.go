package main

const (
	minted   = "services/identity/mint.go"
	known    = "services/identity/internal/clients/clients.go"
	grounded = "pkg/audit/batch.go"
	bursting = "pkg/audit/bursts.go"
	resting  = "pkg/rpc/finish.go"

	ofMinting = "^TestWhatIsRemembered"
)

// minters are the checks of tokens that are minted from memory, and of the records that they rest on (A3).
var minters = []mutant{
	{"a token rests on memory alone", minted, "call.RestOn(s.ground(f, signer.KeyID()))", "_ = s.ground(f, signer.KeyID())", ofMinting},
	{"a principal that has ended is not looked for", minted, "if err := s.unended(ctx, tx, f.UID, f.Until); err != nil {", "if err := s.unended(ctx, tx, f.UID, f.Until); err != nil && f.UID == kid {", ofMinting},
	{"a removed secret is not looked for", minted, "if !there {", `if !there && kid == "" {`, ofMinting},
	{"a key that was replaced signs on", minted, "if gone {", `if gone && kid == "" {`, ofMinting},
	{"a remembered secret has no end", minted, "return f.UID == uid && s.cfg.Now().Before(f.Expire)", "return f.UID == uid", ofMinting},
	{"anybody has the secret", minted, "return f.UID == uid && s.cfg.Now()", "return s.cfg.Now()", ofMinting},
	{"what is asked for anew is remembered", minted, "ok && remembered && good(f)", "ok && good(f)", ofMinting},
	{"a ground is never asked about", grounded, "if now != w.ground.Number {", "if now == 0 {", "^TestRecordsStand"},
	{"a withdrawn record is written", grounded, "w.done <- &Withdrawn{err}\n\t\t\t\t\tcontinue", "w.done <- &Withdrawn{err}", "^TestRecordsStand"},
	{"a burst is not counted ahead", bursting, "if b.calls <= b.ahead {", "if b.calls <= b.ahead+1 {", "^TestBurstOutlives"},
	{"a burst is counted ahead once", bursting, "if b.calls <= b.ahead {", "if b.calls <= b.ahead || b.ahead > 0 {", "^TestBurstOutlives"},
	{"a new address joins a burst", bursting, "if b != nil && b.knows(address) {", "if b != nil {", "^TestBurst$"},
	{"what differs joins a burst", bursting, `ev.Uid, ev.Time, ev.RequestId, ev.TraceId, ev.Address, ev.Digest = "", nil,`, `ev.Details, ev.Uid, ev.Time, ev.RequestId, ev.TraceId, ev.Address, ev.Digest = nil, "", nil,`, "^TestBurst$"},
	{"a burst has no end", bursting, "return now.Before(b.until) &&", "return !now.IsZero() &&", "^TestBurst$"},
	{"a burst that another has ended goes on", bursting, "own, b.lost = append(own, b.members...), true", "own, b.lost = append(own, b.members...), false", "^TestBurstEnded"},
	{"calls of a burst that another has ended are lost", bursting, "own, b.lost = append(own, b.members...), true", "b.lost = true", "^TestBurstEnded"},
	{"what a killed process counted is left", bursting, "return o.endLeft(ctx, now)", "return nil", "^TestBurstOutlives"},
	{"what a killed process left waits for nobody", bursting, "if o.cfg.DB.Dialect() != sqldb.SQLite {", "if o.cfg.DB.Dialect() == sqldb.SQLite {", "^TestDamagedBurst"},
	{"a burst that goes on is ended as it was", bursting, " AND calls <= $2\", ev.GetUid(), most)", "\", ev.GetUid())", "^TestBurstGoesOn"},
	{"a burst is ended twice", bursting, "if err != nil || n == 0 {", "if err != nil || n < 0 {", "^TestBurst"},
	{"a failed transaction is counted", bursting, "if !committed {", "if !committed && staged == nil {", "^TestBurstWhose"},
	{"a ground needs no record", resting, "if rests && (c.audited || !c.m.always) {", "if rests && c.audited && !c.m.always {", "^TestRestOn"},
	{"what is older than the stream is kept", known, "|| f.Number < c.number ||", "||", "^TestKept"},
	{"a revoked principal is kept", known, "c.forget(r.GetSubject())", `c.forget("")`, "^TestKept"},
	{"a revoked secret is kept", known, "c.forget(r.GetSid())", `c.forget("")`, "^TestKept"},
	{"a stream that starts over leaves what was kept", known, "if m.GetReset_() {", "if m.GetReset_() && m.GetSeq() == 0 {", "^TestKept"},
	{"memory has no bound", known, "if len(c.kept) < c.most {", "if len(c.kept) < c.most+100 {", "^TestBounded"},
}
