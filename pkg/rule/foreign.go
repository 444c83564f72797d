package rule

import (
	"strings"

	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
)

// foreign is the overlay: the rules of contracts that are not ours and carry none. It is made anew for each use, so that
// nobody can change it.
func foreign() map[string]*rulev1.Rule {
	table := []struct {
		service, methods string
		rule             *rulev1.Rule
	}{
		// Probes and load balancers have no token; the answer says no more than up or down.
		{"grpc.health.v1.Health", "Check List Watch", &rulev1.Rule{Public: true, Audit: rulev1.Audit_AUDIT_DENIALS, Rate: 100}},
		// The contracts are published. Whether a port offers reflection at all is the port's configuration.
		{"grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", &rulev1.Rule{Public: true, Audit: rulev1.Audit_AUDIT_DENIALS, Rate: 100}},
		{"grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo", &rulev1.Rule{Public: true, Audit: rulev1.Audit_AUDIT_DENIALS, Rate: 100}},
		// Addresses, peers and message counts of every connection of the process.
		{
			"grpc.channelz.v1.Channelz", "GetTopChannels GetServers GetServer GetServerSockets GetChannel GetSubchannel GetSocket",
			&rulev1.Rule{Action: "telemetry/channelz/inspect", Scope: "/", Audit: rulev1.Audit_AUDIT_DENIALS},
		},
		// The socket that it stands on decides who calls (SPIFFE Workload API, section 3): there is no credential to ask for.
		{
			"SpiffeWorkloadAPI", "FetchX509SVID FetchX509Bundles FetchJWTSVID FetchJWTBundles ValidateJWTSVID FetchWITSVID FetchWITBundles",
			&rulev1.Rule{Public: true, Audit: rulev1.Audit_AUDIT_DENIALS},
		},
	}
	rules := map[string]*rulev1.Rule{}
	for _, row := range table {
		for _, method := range strings.Fields(row.methods) {
			rules["/"+row.service+"/"+method] = row.rule
		}
	}
	return rules
}
