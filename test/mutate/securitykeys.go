package main

const (
	keyUse     = "services/identity/securitykeys.go"
	keyPages   = "services/identity/internal/provider/factors.go"
	keyPolicy  = "services/identity/internal/provider/pages.go"
	lifting    = "services/identity/stepup.go"
	keyStore   = "services/identity/internal/store/factors.go"
	ofKeys     = "Key"
	ofKeyPages = "Key@services/identity"
	ofStepping = "StepUp"
)

// securityKeys are the checks of security keys and of stepping up in place (A2, ADR 37). Those of the parser's are its own.
// That a state is another user's is noticed twice, here and by the parser: taken out alone it changes nothing.
var securityKeys = []mutant{
	{"a key that a finger opened opens without", keyUse, "if key.Verifies && !got.Verified {", "if key.Verifies && got.Count == 0 {", ofKeys},
	{"a key's answer that does not hold", keyUse, "	if !ok {\n		return nil, wrongKey()\n	}\n	f, key, call", "	if !ok && answer == \"\" {\n		return nil, wrongKey()\n	}\n	f, key, call", ofKeys},
	{"a count that goes back", keyUse, "	if !rose {", "	if !rose && call == nil {", ofKeys},
	{"a count that goes back is not recorded", keyUse, `call.Detail("key_count", "not above the last")`, `call.Detail("other", "not above the last")`, ofKeys},
	{"a challenge is answered again", answering, "rest.Asked = nil", "rest.Asked = in.Asked", ofKeys},
	{"an old sign-in registers a key", keyUse, "|| now.Sub(b.AuthTime) > freshFor {", "{", ofKeys},
	{"sessions by a password outlive the first key", keyUse, "if recovery, err = s.firstFactor(ctx, tx, user.UID, now); err != nil {", "if recovery, err = s.newRecoveryCodes(ctx, tx, user.UID); err != nil {", ofKeys},
	{"a credential is registered twice", keyStore, "err != nil || n > 0 {", "err != nil || n > 9 {", ofKeys},
	{"another site registers a key", keyPages, "if !p.ours(x) {", "if !p.ours(x) && x == nil {", ofKeyPages},
	{"another browser registers a key", keyPages, "if !ok || !same || !r.Manage", "if !ok || !same && x == nil || !r.Manage", ofKeyPages},
	{"any script runs on the pages", keyPolicy, `"; script-src " + p.origin + PathScript`, `"; script-src *"`, ofKeyPages},
	{"a wrong code steps up", lifting, "by, err := s.useFactor(ctx, tx, user, req.GetFactor(), req.GetResponse(), nil, now)\n		if err != nil {", "by, err := s.useFactor(ctx, tx, user, req.GetFactor(), req.GetResponse(), nil, now)\n		if err != nil && by != nil {", ofStepping},
	{"tries at stepping up are not counted", lifting, "return s.countUserTry(ctx, tx, user.UID, now)", "_ = user\n		return nil", ofStepping},
	{"a stepped up token lives longer", lifting, "Expiry: c.Expiry, ", "", ofStepping},
	{"a stepped up token outlives the one that it is of", lifting, "Ancestors: append(slices.Clone(c.Ancestors), c.ID),", "Ancestors: c.Ancestors,", ofStepping},
	{"a token is stepped up without end", lifting, ">= maxStepUps {", ">= 1<<20 {", ofStepping},
}
