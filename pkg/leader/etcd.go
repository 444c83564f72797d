package leader

import (
	"context"

	"github.com/redoubt-ml/redoubt/pkg/discovery"
)

// Etcd elects among the instances of a service that campaign in etcd. holder is what operators read there.
func Etcd(r *discovery.Registry, service, holder string) Election {
	return etcd{r: r, service: service, holder: holder}
}

type etcd struct {
	r               *discovery.Registry
	service, holder string
}

// Campaign implements Election.
func (e etcd) Campaign(ctx context.Context, role string) (Seat, error) {
	seat, err := e.r.Campaign(ctx, e.service+"/"+role, e.holder)
	if err != nil {
		return nil, err
	}
	return seat, nil
}
