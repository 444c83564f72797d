package resource

// Kind is the type of a resource, told by the collections of its name. The zero value is no kind.
type Kind uint8

// The kinds, each with the form of its names.
const (
	KindUnknown          Kind = iota
	KindRoot                  // "/", the installation
	KindSubscription          // subscriptions/{id}
	KindResourceGroup         // …/resourceGroups/{id}
	KindWorkspace             // …/workspaces/{id}
	KindRun                   // …/workspaces/{workspace}/runs/{run id}
	KindCompute               // …/computes/{id}
	KindSnapshot              // …/snapshots/{snapshot id}
	KindSecret                // …/secrets/{id}
	KindKey                   // …/keys/{id}
	KindRole                  // roleDefinitions/{id}
	KindUser                  // users/{id}
	KindGroup                 // groups/{id}
	KindServicePrincipal      // servicePrincipals/{id}
	KindManagedIdentity       // managedIdentities/{uid}
	KindExperiment            // …/workspaces/{workspace}/experiments/{id}
	KindModel                 // …/workspaces/{workspace}/models/{id}
	KindModelVersion          // …/models/{model}/versions/{number or alias}
	KindEndpoint              // …/workspaces/{workspace}/endpoints/{id}
	KindDeployment            // …/endpoints/{endpoint}/deployments/{id}
	KindApplication           // applications/{id}
	KindIssuer                // issuers/{id}
	kinds
)

// shape says where a kind stands and how its last segment is written.
type shape struct {
	name       string // as the reference option of a field has it
	collection string
	parent     Kind
	valid      func(id string) string // what is wrong with an id, or ""
}

var shapes = [kinds]shape{
	KindUnknown:          {name: "unknown"},
	KindRoot:             {name: "root"},
	KindSubscription:     {"subscription", "subscriptions", KindRoot, badID},
	KindResourceGroup:    {"resource_group", "resourceGroups", KindSubscription, badID},
	KindWorkspace:        {"workspace", "workspaces", KindResourceGroup, badID},
	KindRun:              {"run", "runs", KindWorkspace, badRunID},
	KindCompute:          {"compute", "computes", KindWorkspace, badID},
	KindSnapshot:         {"snapshot", "snapshots", KindWorkspace, badSnapshotID},
	KindSecret:           {"secret", "secrets", KindWorkspace, badID},
	KindKey:              {"key", "keys", KindWorkspace, badID},
	KindRole:             {"role", "roleDefinitions", KindRoot, badID},
	KindUser:             {"user", "users", KindRoot, badID},
	KindGroup:            {"group", "groups", KindRoot, badID},
	KindServicePrincipal: {"service_principal", "servicePrincipals", KindRoot, badID},
	KindManagedIdentity:  {"managed_identity", "managedIdentities", KindRoot, badUID},
	KindExperiment:       {"experiment", "experiments", KindWorkspace, badSnapshotID},
	KindModel:            {"model", "models", KindWorkspace, badModelID},
	KindModelVersion:     {"model_version", "versions", KindModel, badVersionID},
	KindEndpoint:         {"endpoint", "endpoints", KindWorkspace, badID},
	KindDeployment:       {"deployment", "deployments", KindEndpoint, badID},
	KindApplication:      {"application", "applications", KindRoot, badID},
	KindIssuer:           {"issuer", "issuers", KindRoot, badID},
}

// String is the kind's name as the reference option of a request's field has it: "resource_group".
func (k Kind) String() string {
	if k >= kinds {
		return shapes[KindUnknown].name
	}
	return shapes[k].name
}

// Collection is the segment before the id: "resourceGroups". It is "" for the root and for no kind.
func (k Kind) Collection() string {
	if k >= kinds {
		return ""
	}
	return shapes[k].collection
}

// ParseKind finds a kind by its name; KindUnknown has none.
func ParseKind(name string) (Kind, bool) {
	for k := KindRoot; k < kinds; k++ {
		if shapes[k].name == name {
			return k, true
		}
	}
	return KindUnknown, false
}

// childOf finds the kind whose names go on from parent with the collection.
func childOf(parent Kind, collection string) Kind {
	for k := KindSubscription; k < kinds; k++ {
		if shapes[k].parent == parent && shapes[k].collection == collection {
			return k
		}
	}
	return KindUnknown
}
