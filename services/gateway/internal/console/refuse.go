package console

import (
	"net/http"
	"strconv"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// refusal is why there is no page.
type refusal struct {
	Status             int
	Message, RequestID string
	// Fields are the fields of the form that are wrong, and how.
	Fields []string
	// SignIn is the page that begins a sign-in, where one would help, and Back the page that the form stood on.
	SignIn, Back string
}

// refusedAt is refused for somebody who was at a page of the console. What needs a fresh sign-in sends him to the provider, and back there.
func (c *Console) refusedAt(w http.ResponseWriter, v *visit, at string, err error) {
	if fault.ReasonOf(fault.FromStatus(err)) == faultv1.Reason_STEP_UP_REQUIRED {
		age := fault.Describe(fault.FromStatus(err)).Metadata()["max_age"]
		if _, bad := strconv.ParseUint(age, 10, 31); bad != nil {
			age = "0"
		}
		if v.r.Method != http.MethodGet {
			at = noted(at, "fresh")
		}
		http.Redirect(w, v.r, toSignIn(at, age), http.StatusSeeOther)
		return
	}
	c.refusal(w, v.r, v.base, at, err)
}

// refused shows what a service said.
func (c *Console) refused(w http.ResponseWriter, r *http.Request, base string, err error) {
	c.refusal(w, r, base, "", err)
}

func (c *Console) refusal(w http.ResponseWriter, r *http.Request, base, at string, err error) {
	id := fault.RequestID(err)
	err = fault.FromStatus(err)
	f := fault.Describe(err)
	body := refusal{Status: statusOf(fault.Code(err)), Message: f.Message(), RequestID: id}
	for _, v := range f.Violations() {
		body.Fields = append(body.Fields, v.Field+": "+v.Description)
	}
	if body.Status == http.StatusUnauthorized {
		body.SignIn = toSignIn(at, "")
		if at == "" && r.Method == http.MethodGet {
			body.SignIn = toSignIn(r.URL.RequestURI(), "")
		}
		if len(r.CookiesNamed(cookieName)) > 0 {
			forget(w)
		}
	} else if r.Method != http.MethodGet {
		body.Back = at
	}
	c.show(w, body.Status, "refused.html", view{Title: http.StatusText(body.Status), Base: base, Body: body})
}

func statusOf(code codes.Code) int {
	switch code {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange:
		return http.StatusBadRequest
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.NotFound:
		return http.StatusNotFound
	case codes.AlreadyExists, codes.Aborted:
		return http.StatusConflict
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// forget takes the cookie away.
func forget(w http.ResponseWriter) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode, MaxAge: -1})
}
