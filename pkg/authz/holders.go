package authz

import "slices"

// Holders are the uids of the principals and groups to which a role is assigned at the installation itself, sorted: as this service has
// heard, so no older than Config.MaxStale while Fresh returns nil. Who is in the groups is not looked at.
func (e *Engine) Holders(role string) []string {
	var out []string
	for _, a := range e.state.Load().assignments.all() {
		if a.scope == "" && a.role == role {
			out = append(out, a.principal)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
