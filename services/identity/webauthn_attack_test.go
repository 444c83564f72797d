package identity

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

// A2: what a page takes for the answer of a user's security key (Web Authentication Level 2, section 7.2).
func TestAttackKeyAssertion(t *testing.T) {
	long(t)
	l := newLab(t)
	a := l.app("board", nil)
	keys := make(map[string]*device)
	for _, user := range []string{"alice", "bob", "carol"} {
		l.addUser(user)
		d := newDevice(t)
		if user == "carol" { // hers knows her finger, and is synchronised
			d.flags |= flagUV | flagBE
		}
		d.count = 100
		l.registers(user, d)
		keys[user] = d
	}
	alice, bob := keys["alice"], keys["bob"]
	l.addUser("dora")
	dora, plain := newDevice(t), newDevice(t)
	dora.flags |= flagUV
	l.registers("dora", plain)
	own := l.browser()
	page := own.toKeys("dora")
	plain.count++
	if r := own.post(provider.PathSignIn, answers(t, page, plain.signs(page.asksKey(t)))); r.GetLocation() != provider.PathFactors {
		t.Fatalf("%d %s", r.GetStatus(), r.text())
	}
	page = own.get(provider.PathFactors, nil)
	if r := own.post(provider.PathFactors, adds(t, page, "", dora.creates(page.asksKey(t)))); r.GetLocation() != provider.PathFactors {
		t.Fatalf("%d %s", r.GetStatus(), r.text())
	}
	// begins gives a page that asks for the user's key, his device, and what it has to answer.
	begins := func(user string) (*browser, reply, *device, options) {
		must(t, l.forget(user))
		b := l.browser()
		page := b.signInTo(a.ask(), user)
		d := *keys[user]
		keys[user].count += 10
		d.count = keys[user].count
		return b, page, &d, page.asksKey(t)
	}
	sends := func(b *browser, page reply, answer string) string {
		r := b.post(provider.PathSignIn, answers(t, page, answer))
		return gave(r, r.GetLocation() != "" || r.GetStatus() != http.StatusUnauthorized)
	}
	cheat := func(name, user string, change func(*device, *options)) attack {
		return attack{name, func(*testing.T) string {
			b, page, d, o := begins(user)
			change(d, &o)
			return sends(b, page, d.signs(o))
		}}
	}
	raw := func(name string, text func(d *device, o options) string) attack {
		return attack{name, func(*testing.T) string {
			b, page, d, o := begins("alice")
			return sends(b, page, text(d, o))
		}}
	}
	var all []attack
	for name, origin := range map[string]string{
		"another host": "https://evil.example", "http": "http://redoubt.test:7443", "another port": "https://redoubt.test", "a host below": "https://x.redoubt.test:7443",
		"a host that goes on": "https://redoubt.test:7443.evil.example", "none": "", "null": "null", "an app": "android:apk-key-hash:abc", "a file": "file://",
		"a user before the host": "https://evil.example@x.test:7443",
	} {
		all = append(all, cheat("origin: "+name, "alice", func(d *device, _ *options) { d.origin = origin }))
	}
	for name, rp := range map[string]string{"another": "evil.example", "the one above": "test", "one below": "x.redoubt.test", "with the port": "redoubt.test:7443", "none": ""} {
		all = append(all, cheat("RP ID: "+name, "alice", func(d *device, _ *options) { d.rp = rp }))
	}
	for name, set := range map[string]func(map[string]any){
		"cross origin": func(m map[string]any) { m["crossOrigin"] = true },
		"a frame":      func(m map[string]any) { m["crossOrigin"], m["topOrigin"] = true, issuer },
		"no challenge": func(m map[string]any) { delete(m, "challenge") },
		"a challenge with padding": func(m map[string]any) {
			c, _ := m["challenge"].(string)
			m["challenge"] = c + "="
		},
	} {
		all = append(all, cheat("client data: "+name, "alice", func(d *device, _ *options) { d.data = set }))
	}
	_, _, _, other := begins("alice")
	_, _, _, bobs := begins("bob")
	all = append(all,
		cheat("the type of a registration", "alice", func(d *device, _ *options) { d.kind = "webauthn.create" }),
		cheat("the challenge of another sign-in", "alice", func(_ *device, o *options) { o.PublicKey.Challenge = other.PublicKey.Challenge }),
		cheat("the challenge of another user", "alice", func(_ *device, o *options) { o.PublicKey.Challenge = bobs.PublicKey.Challenge }),
		cheat("no challenge", "alice", func(_ *device, o *options) { o.PublicKey.Challenge = "" }),
		cheat("another user's credential", "alice", func(d *device, _ *options) { d.key, d.id = bob.key, bob.id }),
		cheat("another user's key under the user's credential", "alice", func(d *device, _ *options) { d.key = bob.key }),
		cheat("the user's key under another's credential", "alice", func(d *device, _ *options) { d.id = bob.id }),
		cheat("a credential that nobody registered", "alice", func(d *device, _ *options) { *d = *newDevice(t) }),
		cheat("nobody was there", "alice", func(d *device, _ *options) { d.flags &^= flagUP }),
		cheat("a key that knew its user and does not now", "carol", func(d *device, _ *options) { d.flags &^= flagUV }),
		cheat("a key that was synchronised and is not", "carol", func(d *device, _ *options) { d.flags &^= flagBE }),
		cheat("a key that was not synchronised and is", "alice", func(d *device, _ *options) { d.flags |= flagBE }),
		cheat("the last count again", "alice", func(d *device, _ *options) { d.count = 100 }),
		cheat("a lower count", "alice", func(d *device, _ *options) { d.count = 3 }),
		cheat("a key that stopped to count", "alice", func(d *device, _ *options) { d.count = 0 }),
		raw("tampered client data", func(d *device, o options) string {
			signed := d.client("webauthn.get", o.PublicKey.Challenge)
			return d.signed(d.auth(d.flags), signed, append(signed[:len(signed)-1:len(signed)-1], []byte(`,"x":1}`)...))
		}),
		raw("client data of another origin, signed, and ours sent", func(d *device, o options) string {
			sent := d.client("webauthn.get", o.PublicKey.Challenge)
			return d.signed(d.auth(d.flags), bytes.Replace(sent, []byte("redoubt.test"), []byte("evil.example"), 1), sent)
		}),
		raw("a signature of other data", func(d *device, o options) string {
			return strings.Replace(d.signs(o), `"authenticatorData":"`+b64.EncodeToString(d.auth(d.flags)), `"authenticatorData":"`+b64.EncodeToString(d.auth(d.flags|flagUV)), 1)
		}),
		raw("no signature", func(d *device, o options) string {
			text := d.signs(o)
			return text[:strings.Index(text, `"signature":"`)+13] + `"},"type":"public-key"}`
		}),
		raw("a registration", func(d *device, o options) string { return d.creates(o) }),
		raw("no JSON", func(*device, options) string { return "x" }),
		raw("an empty object", func(*device, options) string { return "{}" }),
		raw("null", func(*device, options) string { return "null" }),
		raw("more than a browser sends", func(d *device, o options) string { return d.signs(o) + strings.Repeat(" ", 17<<10) }),
		attack{"the same answer twice", func(t *testing.T) string {
			b, page, d, o := begins("alice")
			answer, cookie := d.signs(o), b.cookie
			if r := b.post(provider.PathSignIn, answers(t, page, answer)); r.query().Get("code") == "" {
				t.Fatalf("the right answer is refused: %d %s", r.GetStatus(), r.text())
			}
			b.cookie = cookie
			b2, page2, _, _ := begins("alice")
			return sends(b2, page2, answer) + sends(b, page, answer)
		}},
		attack{"the right answer after a wrong one of the same page", func(t *testing.T) string {
			b, page, d, o := begins("alice")
			_ = b.post(provider.PathSignIn, answers(t, page, "{}"))
			return sends(b, page, d.signs(o))
		}},
		attack{"a key that knew its user and does not now, beside one that never did", func(t *testing.T) string {
			must(t, l.forget("dora"))
			b := l.browser()
			page := b.signInTo(a.ask(), "dora")
			dora.count += 10
			d := *dora
			d.flags &^= flagUV
			return sends(b, page, d.signs(page.asksKey(t)))
		}},
		attack{"from another browser", func(t *testing.T) string {
			_, page, d, o := begins("alice")
			r := l.browser().post(provider.PathSignIn, answers(t, page, d.signs(o)))
			return gave(r, r.GetLocation() != "")
		}},
		attack{"from another site", func(t *testing.T) string {
			b, page, d, o := begins("alice")
			b.site = "cross-site"
			r := b.post(provider.PathSignIn, answers(t, page, d.signs(o)))
			return gave(r, r.GetStatus() != http.StatusForbidden)
		}},
		attack{"over gRPC, where no key is asked", func(*testing.T) string {
			must(t, l.forget("alice"))
			if r, err := l.answer(l.asked("alice").GetState(), "webauthn", alice.signs(other)); err == nil {
				return r.String()
			}
			return ""
		}},
		attack{"an answer that comes late", func(*testing.T) string {
			b, page, d, o := begins("alice")
			l.advance(stateLife)
			return sends(b, page, d.signs(o))
		}},
	)
	attacks(t, all)
	// The refused counts are in the record, and what is right works still.
	recorded := 0
	for _, e := range l.events() {
		if e.GetDetails()["key_count"] != "" {
			recorded++
		}
	}
	if recorded != 3 {
		t.Errorf("%d counts that did not rise are recorded", recorded)
	}
	for _, user := range []string{"alice", "carol"} {
		b, page, d, o := begins(user)
		if r := b.post(provider.PathSignIn, answers(t, page, d.signs(o))); r.query().Get("code") == "" {
			t.Errorf("%s: %d %s", user, r.GetStatus(), r.text())
		}
	}
}

// A2: what a page takes for a new security key (section 7.1).
func TestAttackKeyRegistration(t *testing.T) {
	long(t)
	l := newLab(t)
	for _, user := range []string{"alice", "bob"} {
		l.addUser(user)
	}
	bob := newDevice(t)
	l.registers("bob", bob)
	b := l.browser()
	b.toKeys("alice")
	begins := func() (*browser, reply, *device, options) {
		must(t, l.forget("alice"))
		b.address = l.browser().address
		page := b.get(provider.PathFactors, nil)
		return b, page, newDevice(t), page.asksKey(t)
	}
	sends := func(b *browser, q url.Values) string {
		r := b.post(provider.PathFactors, q)
		return gave(r, r.GetLocation() != "" || r.GetStatus() < 400)
	}
	cheat := func(name string, change func(*device, *options)) attack {
		return attack{name, func(*testing.T) string {
			b, page, d, o := begins()
			change(d, &o)
			return sends(b, adds(t, page, "", d.creates(o)))
		}}
	}
	_, _, _, other := begins()
	all := []attack{
		cheat("another origin", func(d *device, _ *options) { d.origin = "https://evil.example" }),
		cheat("the origin over http", func(d *device, _ *options) { d.origin = "http://redoubt.test:7443" }),
		cheat("another RP ID", func(d *device, _ *options) { d.rp = "evil.example" }),
		cheat("nobody was there", func(d *device, _ *options) { d.flags = 0 }),
		cheat("the type of an assertion", func(d *device, _ *options) { d.kind = "webauthn.get" }),
		cheat("another page's challenge", func(_ *device, o *options) { o.PublicKey.Challenge = other.PublicKey.Challenge }),
		cheat("in a frame", func(d *device, _ *options) { d.data = func(m map[string]any) { m["crossOrigin"] = true } }),
		cheat("another user's credential", func(d *device, _ *options) { d.id = bob.id }),
		{"an assertion", func(t *testing.T) string {
			b, page, d, o := begins()
			return sends(b, adds(t, page, "", d.signs(o)))
		}},
		{"the right answer after a wrong one of the same page", func(t *testing.T) string {
			b, page, d, o := begins()
			_ = b.post(provider.PathFactors, adds(t, page, "", "{}"))
			return sends(b, adds(t, page, "", d.creates(o)))
		}},
		{"a name too long", func(t *testing.T) string {
			b, page, d, o := begins()
			return sends(b, adds(t, page, strings.Repeat("n", 65), d.creates(o)))
		}},
		{"from another browser", func(t *testing.T) string {
			_, page, d, o := begins()
			r := l.browser().post(provider.PathFactors, adds(t, page, "", d.creates(o)))
			return gave(r, r.GetLocation() != "" || !strings.Contains(r.text(), `name="password"`))
		}},
		{"from the browser of another user", func(t *testing.T) string {
			_, page, d, o := begins()
			thief := l.browser()
			r := thief.toKeys("bob")
			r = thief.post(provider.PathSignIn, answers(t, r, bob.signs(r.asksKey(t))))
			if r.GetLocation() != provider.PathFactors {
				t.Fatalf("%d %s", r.GetStatus(), r.text())
			}
			return sends(thief, adds(t, page, "", d.creates(o)))
		}},
		{"from another browser of the user's", func(t *testing.T) string {
			_, page, d, o := begins()
			second := l.browser()
			second.toKeys("alice")
			return sends(second, adds(t, page, "", d.creates(o)))
		}},
		{"by a state that is another user's, past the page", func(t *testing.T) string {
			b, _, d, _ := begins()
			sid := func(cookie string) string {
				b, _, err := l.s.store.FindBrowser(t.Context(), l.db.Reader(), redact.FromString(cookie), l.now())
				must(t, err)
				return b.SID
			}
			state, asked, _, ok, err := l.s.beginKey(t.Context(), sid(b.cookie))
			if err != nil || !ok {
				t.Fatal(ok, err)
			}
			var mine options
			must(t, json.Unmarshal([]byte(asked), &mine))
			thief := l.browser()
			r := thief.toKeys("bob")
			bob.count++
			r = thief.post(provider.PathSignIn, answers(t, r, bob.signs(r.asksKey(t))))
			if r.GetLocation() != provider.PathFactors {
				t.Fatalf("%d %s", r.GetStatus(), r.text())
			}
			if _, err := l.s.addKeyOfBrowser(t.Context(), sid(thief.cookie), state, "", d.creates(mine), nil); fault.ReasonOf(err) != faultv1.Reason_SIGN_IN_FAILED {
				return fmt.Sprint("it went on: ", err)
			}
			return ""
		}},
		{"from another site", func(t *testing.T) string {
			b, page, d, o := begins()
			b.site = "cross-site"
			defer func() { b.site = "same-origin" }()
			return sends(b, adds(t, page, "", d.creates(o)))
		}},
		{"a page of a sign-in that was another's", func(t *testing.T) string {
			a := l.app("board", nil)
			x := l.browser()
			page := x.get(provider.PathAuthorize, a.ask())
			r := b.post(provider.PathFactors, adds(t, page, "", "{}"))
			return gave(r, r.GetLocation() != "" || r.GetStatus() < 400)
		}},
		{"by a sign-in that is too old", func(t *testing.T) string {
			b, page, d, o := begins()
			l.advance(freshFor + 1)
			r := b.post(provider.PathFactors, adds(t, page, "", d.creates(o)))
			return gave(r, r.GetLocation() != "" || len(codesShown.FindAllString(r.text(), -1)) > 0)
		}},
	}
	attacks(t, all)
	// Nothing was registered; the password alone signs in.
	if c := l.signIn("alice", "password of alice"); c.GetAccessToken() == "" {
		t.Error("alice has a factor")
	}
	// One that is answered twice is one factor: the second finds the challenge used.
	d := newDevice(t)
	b = l.browser()
	page := b.toKeys("alice")
	q := adds(t, page, "", d.creates(page.asksKey(t)))
	if r := b.post(provider.PathFactors, q); len(codesShown.FindAllString(r.text(), -1)) != 10 {
		t.Fatalf("%d %s", r.GetStatus(), r.text())
	}
	if got := sends(b, q); got != "" {
		t.Errorf("the same registration twice: %s", got)
	}
	if f := l.asked("alice").GetFactors(); !slices.Contains(f, "webauthn") {
		t.Errorf("%v", f)
	}
}
