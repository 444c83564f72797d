package plan

import (
	"path/filepath"
	"slices"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// Store says where a service's data are restored to, before the plan is carried out: the folder of its first instance below data, and the
// connection to its database as it is reached from here, empty where it has a SQLite file.
func (p *Plan) Store(data, service string) (folder string, connection redact.Secret, err error) {
	i := slices.IndexFunc(p.Instances, func(in Instance) bool { return in.Service == service })
	if i < 0 {
		return "", redact.Secret{}, fault.InvalidArgument("the plan has no instance of %s", service)
	}
	in := p.Instances[i]
	if p.Postgres == nil {
		return in.Folder(), redact.Secret{}, nil
	}
	abs, err := filepath.Abs(data)
	if err != nil {
		return "", redact.Secret{}, err
	}
	m := &maker{Plan: p, data: abs}
	if !there(m.at(in.Folder(), dsnFile)) {
		return "", redact.Secret{}, fault.FailedPrecondition("the connection to the database of %s is not there: run `redoubt bootstrap --plan … --data %s --sql` first, and have its file run", service, data)
	}
	connection, err = m.connection(in)
	return in.Folder(), connection, err
}
