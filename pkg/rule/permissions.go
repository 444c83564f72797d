package rule

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
)

// Permission is one row of the permission table: what it takes to call a method.
type Permission struct {
	// Method is the full name, "/redoubt.compute.v1.RunService/SubmitRun".
	Method string
	// Action is the permission, "" for methods that ask for none; then one of Callers, Public and Self is set.
	Action string
	// Data says that dataActions give it.
	Data bool
	// Scope is the field that names the resource, or "/"; ScopeKind the kind of resource, "scope" for any.
	Scope, ScopeKind string
	// Uses is what is needed besides.
	Uses []PermissionUse
	// Callers are the services that may call it instead.
	Callers []string
	// Public needs nobody signed in, Self anybody. Run says that a run token can do, Deliver that it can while its run may still deliver,
	// after its end.
	Public, Self, Run, Deliver bool
	// StepUp is within how many seconds who has a second factor must have signed in, 0 for whenever; StepUpAt the kinds of scope at which
	// that is so, none for all.
	StepUp   int
	StepUpAt []string
	// Audit is "always", "denials" or "summary".
	Audit string
}

// PermissionUse is a further resource with the action that is needed on it.
type PermissionUse struct {
	Field, Action string
	Data          bool
}

// Permissions are the rows of all methods, ordered by action, then method; the methods without an action stand last.
func (t *Table) Permissions() []Permission {
	rows := make([]Permission, 0, len(t.Methods()))
	for _, m := range t.Methods() {
		r := m.Rule
		p := Permission{
			Method: m.FullName, Action: r.GetAction(), Data: r.GetData(), Scope: r.GetScope(),
			Callers: slices.Clone(r.GetCallers()), Public: r.GetPublic(), Self: r.GetSelf(), Run: r.GetRun(), Deliver: r.GetDeliver(), Audit: audits[r.GetAudit()],
			StepUp: int(r.GetStepUp()), StepUpAt: slices.Clone(r.GetStepUpAt()),
		}
		if r.GetScope() != "" {
			p.ScopeKind = anyScope
			if m.ScopeKind != 0 {
				p.ScopeKind = m.ScopeKind.String()
			}
		}
		for _, u := range r.GetUses() {
			p.Uses = append(p.Uses, PermissionUse{u.GetField(), u.GetAction(), u.GetData()})
		}
		rows = append(rows, p)
	}
	slices.SortFunc(rows, func(a, b Permission) int {
		return cmp.Or(cmp.Compare(order(a), order(b)), strings.Compare(a.Action, b.Action), strings.Compare(a.Method, b.Method))
	})
	return rows
}

func order(p Permission) int {
	switch {
	case p.Action != "":
		return 0
	case p.Self:
		return 1
	case p.Public:
		return 2
	}
	return 3
}

var audits = map[rulev1.Audit]string{
	rulev1.Audit_AUDIT_ALWAYS: "always", rulev1.Audit_AUDIT_DENIALS: "denials", rulev1.Audit_AUDIT_SUMMARY: "summary",
}

// Role is a column of the rendered table.
type Role struct {
	Name string
	// Has reports whether the role gives an action, as a data action if data.
	Has func(action string, data bool) bool
}

// Markdown renders rows as a table with one column for each role, which says yes where the role alone gives all that the
// method takes.
func Markdown(rows []Permission, roles ...Role) string {
	var b strings.Builder
	b.WriteString("| method | who may call it | scope | recorded |")
	for _, r := range roles {
		b.WriteString(" " + r.Name + " |")
	}
	b.WriteString("\n| --- | --- | --- | --- |" + strings.Repeat(" --- |", len(roles)) + "\n")
	for _, p := range rows {
		b.WriteString("| `" + strings.TrimPrefix(p.Method, "/") + "` | " + p.who() + " | " + p.where() + " | " + p.Audit + " |")
		for _, r := range roles {
			if p.given(r) {
				b.WriteString(" yes |")
			} else {
				b.WriteString("  |")
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// given reports whether the role is enough. Methods that ask for no action are not given by roles.
func (p Permission) given(r Role) bool {
	if p.Action == "" || !r.Has(p.Action, p.Data) {
		return false
	}
	return !slices.ContainsFunc(p.Uses, func(u PermissionUse) bool { return !r.Has(u.Action, u.Data) })
}

func (p Permission) who() string {
	var s string
	switch {
	case p.Action != "":
		s = code(p.Action, p.Data)
	case p.Self:
		s = "whoever is signed in, for himself"
	case p.Public:
		s = "everybody"
	case slices.Contains(p.Callers, "*"):
		s = "every service"
	default:
		s = "the services " + strings.Join(p.Callers, ", ")
	}
	for _, u := range p.Uses {
		s += "<br>and " + code(u.Action, u.Data) + " on `" + u.Field + "`"
	}
	switch {
	case p.Deliver:
		s += "<br>also a run, for itself, and to deliver after its end"
	case p.Run:
		s += "<br>also a run, for itself"
	}
	if p.StepUp > 0 {
		s += fmt.Sprintf("<br>with a second factor: signed in within %d s", p.StepUp)
		if len(p.StepUpAt) > 0 {
			s += ", at " + strings.Join(p.StepUpAt, " and ")
		}
	}
	return s
}

func (p Permission) where() string {
	switch p.Scope {
	case "":
		return ""
	case "/":
		return "the installation"
	}
	return p.ScopeKind + " in `" + p.Scope + "`"
}

func code(action string, data bool) string {
	if data {
		return "`" + action + "` (data)"
	}
	return "`" + action + "`"
}
