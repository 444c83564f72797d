package openid

import (
	"context"
	"errors"
	"net/http"
	"time"

	"golang.org/x/oauth2"
	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	grantDevice = "urn:ietf:params:oauth:grant-type:device_code"

	deviceWait    = 5 * time.Second // where the provider does not say (RFC 8628 section 3.2)
	deviceMost    = time.Minute     // between two questions
	deviceLongest = 30 * time.Minute
	maxUserCode   = 32
)

// Device signs in by a browser elsewhere (RFC 8628). show tells the person where to type which code; wait waits, or ends with its context.
func (p *Provider) Device(ctx context.Context, show func(at, code string, limit time.Duration), wait func(context.Context, time.Duration) error) (Signed, error) {
	cfg := p.config(ClientID)
	d, err := cfg.DeviceAuth(p.with(ctx))
	if err != nil {
		return Signed{}, p.explain(ctx, err)
	}
	if d.DeviceCode == "" || d.UserCode == "" || len(d.UserCode) > maxUserCode || clean(d.UserCode) != d.UserCode || !p.ours(d.VerificationURI) {
		return Signed{}, refused(fault.FailedPrecondition("the provider's answer for a device cannot be used"))
	}
	now := p.now()
	end := d.Expiry
	if most := now.Add(deviceLongest); end.IsZero() || end.After(most) {
		end = most
	}
	between := deviceWait
	if d.Interval > 0 {
		between = min(time.Duration(min(d.Interval, int64(deviceMost/time.Second)))*time.Second, deviceMost)
	}
	show(clean(d.VerificationURI), d.UserCode, end.Sub(now).Round(time.Second))
	for {
		if err := wait(ctx, between); err != nil {
			return Signed{}, err
		}
		if !p.now().Before(end) {
			return Signed{}, p.says("expired_token", "", http.StatusBadRequest)
		}
		t, err := cfg.Exchange(p.with(ctx), "", oauth2.SetAuthURLParam("grant_type", grantDevice), oauth2.SetAuthURLParam("device_code", d.DeviceCode))
		if err == nil {
			return p.signed(ctx, t, "")
		}
		var r *oauth2.RetrieveError
		switch {
		case !errors.As(err, &r):
			if err := p.explain(ctx, err); !fault.Is(err, codes.Unavailable) {
				return Signed{}, err
			}
			between = min(2*between, deviceMost) // section 3.5: it may be away
		case r.ErrorCode == errPending:
		case r.ErrorCode == errSlowDown:
			between += deviceWait
		default:
			if err := p.explain(ctx, err); !fault.Is(err, codes.Unavailable) {
				return Signed{}, err
			}
			between = min(2*between, deviceMost)
		}
	}
}
