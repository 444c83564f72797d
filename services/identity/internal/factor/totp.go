package factor

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base32"
	"net/url"
	"strings"
	"time"

	"github.com/pquerna/otp/hotp"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	digits     = 6
	period     = 30 // seconds
	drift      = 1  // steps that a clock may be off, either way
	secretSize = 20 // bytes: what HMAC-SHA-1 gives (RFC 4226 section 4, R6)
)

// NewTOTP makes the secret of an authenticator app.
func NewTOTP() redact.Secret {
	b := make([]byte, secretSize)
	_, _ = rand.Read(b) // crypto/rand never fails
	return redact.New(b)
}

var plain32 = base32.StdEncoding.WithPadding(base32.NoPadding)

// Text is a secret as people type it into an authenticator app.
func Text(secret redact.Secret) string { return plain32.EncodeToString(secret.Reveal()) }

// URI is a secret as authenticator apps read it, for the account of an installation. It is as secret as the secret.
func URI(secret redact.Secret, installation, account string) string {
	issuer := "Redoubt " + installation
	// Apps read a plus as a plus.
	q := "secret=" + Text(secret) + "&issuer=" + strings.ReplaceAll(url.QueryEscape(issuer), "+", "%20") + "&algorithm=SHA1&digits=6&period=30"
	// The label's colon stands between issuer and account, so none may be in either.
	return "otpauth://totp/" + url.PathEscape(strings.ReplaceAll(issuer, ":", " ")) + ":" + url.PathEscape(account) + "?" + q
}

// Match finds the step of which code is the code, within drift of now and later than used, the last step that was accepted. The code may
// have spaces in it, as apps show it. ok is false for what is no code of a step that still counts.
func Match(secret redact.Secret, code string, now time.Time, used int64) (step int64, ok bool, err error) {
	typed, good := readCode(code)
	if !good {
		return 0, false, nil
	}
	text, here := Text(secret), now.Unix()/period
	if secret.Len() < secretSize {
		return 0, false, fault.Internal(nil, "the secret of a factor is too short")
	}
	found := 0
	for s := here - drift; s <= here+drift; s++ {
		if s < 0 {
			continue
		}
		want, err := hotp.GenerateCode(text, uint64(s))
		if err != nil {
			return 0, false, fault.Internal(err, "the code of a factor could not be computed")
		}
		hit := subtle.ConstantTimeCompare([]byte(want), []byte(typed))
		if s <= used {
			hit = 0
		}
		// The later of two steps with the same code: the earlier is over with it.
		step = int64(subtle.ConstantTimeSelect(hit, int(s), int(step)))
		found |= hit
	}
	if found == 0 {
		return 0, false, nil
	}
	return step, true, nil
}

// readCode takes six ASCII digits, with or without spaces between.
func readCode(typed string) (string, bool) {
	if len(typed) > 4*digits {
		return "", false
	}
	s := strings.ReplaceAll(typed, " ", "")
	if len(s) != digits {
		return "", false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return "", false
		}
	}
	return s, true
}
