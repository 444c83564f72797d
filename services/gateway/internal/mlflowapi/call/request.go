package call

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/mlflow"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/intake"
)

// Route answers one request: with an object that JSON can say, nil for an empty one, or an error.
type Route func(c *Call) (any, error)

// Call is one request.
type Call struct {
	Ctx       context.Context // of the RPCs that it becomes
	Workspace string          // name
	Body      []byte          // the JSON object of its fields
	W         http.ResponseWriter
	R         *http.Request
}

// Written is what a route gives that has written its answer itself.
type Written struct{}

// Unread says why a body could not be taken in.
func Unread(err error) error {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return mlflow.BadParameter("a request of this kind has at most 1 MiB, a search 5 MiB; send less at once")
	case errors.Is(err, intake.ErrFull):
		r := mlflow.Refuse(http.StatusServiceUnavailable, "TEMPORARILY_UNAVAILABLE", "too many large requests at once; repeat the request")
		r.After = time.Second
		return r
	case errors.Is(err, intake.ErrSlow):
		return mlflow.Refuse(http.StatusRequestTimeout, "BAD_REQUEST", "the body came too slowly")
	}
	return mlflow.BadRequest("the body broke off")
}

// In reads the fields of a request.
func In[T any](c *Call) (*T, error) {
	into := new(T)
	if bad := mlflow.Decode(c.Body, into); bad != nil {
		return nil, bad
	}
	return into, nil
}

// Texts is a list of strings; a query has a single one without brackets.
type Texts []string

// UnmarshalJSON implements json.Unmarshaler.
func (t *Texts) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*t = Texts{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(t))
}
