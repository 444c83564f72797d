package authz

import workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"

// The built-in roles.
const (
	Owner       = "roleDefinitions/owner"
	Contributor = "roleDefinitions/contributor"
	Reader      = "roleDefinitions/reader"
	AgentHost   = "roleDefinitions/agent-host"
)

// BuiltinRoles are the role definitions that every installation has, Owner first, made anew for each caller. Workspace streams
// them with its own.
//
// Owner has everything. Contributor has what he works with, service by service, so that whatever is added under identity and
// authorization stays closed to him but for reading: he can neither give access nor make accounts, certificates or sessions
// of others. He is no agent either, so he cannot report for a run. Reader reads; no secret stands under */read, and scoring
// is given to him by name (B1). AgentHost takes the runs of self-hosted targets and can do nothing else: it is for the service principal
// whose secret lies on such a machine.
func BuiltinRoles() []*workspacev1.RoleDefinition {
	return []*workspacev1.RoleDefinition{
		{
			Name: Owner, DisplayName: "Owner", BuiltIn: true,
			Description: "Everything, and giving access to others.",
			Actions:     []string{"*"},
			DataActions: []string{"*"},
		},
		{
			Name: Contributor, DisplayName: "Contributor", BuiltIn: true,
			Description:    "Everything but giving access, and the accounts of others.",
			Actions:        []string{"*/read", "compute/*", "inference/*", "keyvault/*", "telemetry/*", "workspace/*"},
			NotActions:     []string{"telemetry/channelz/*"},
			DataActions:    []string{"*"},
			NotDataActions: []string{"authorization/*", "identity/*", "compute/runs/execute"},
		},
		{
			Name: Reader, DisplayName: "Reader", BuiltIn: true,
			Description: "Seeing everything but secrets, and calling endpoints.",
			Actions:     []string{"*/read"},
			DataActions: []string{"inference/endpoints/score"},
		},
		{
			Name: AgentHost, DisplayName: "Agent host", BuiltIn: true,
			Description: "Taking the runs of self-hosted targets, for the machines that carry them.",
			Actions:     []string{"compute/computes/read"},
			DataActions: []string{"compute/computes/claim"},
		},
	}
}
