package node

import (
	"net"
	"strings"
	"testing"
)

// A5: what inference needs to listen is there before anything starts, and is named where it is not.
func TestScoringConfig(t *testing.T) {
	good := func() Config {
		return Config{
			Mesh: Mesh{TrustDomain: "redoubt.test", PublicURL: "https://redoubt.test:1", Etcd: []string{"https://127.0.0.1:2"}, EnrolAddress: "127.0.0.1:3"},
			Service: Service{
				Name: "inference", Dir: t.TempDir(), Listen: "127.0.0.1:4", ScoringListen: "0.0.0.0:5", ReplicaListen: "127.0.0.1:6", ScoringURL: "https://score.test:5",
			},
		}
	}
	c := good()
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(s *Service){
		"service.scoring_listen":           func(s *Service) { s.ScoringListen = "" },
		"service.replica_listen":           func(s *Service) { s.ReplicaListen = "127.0.0.1" },
		"service.scoring_url":              func(s *Service) { s.ScoringURL = "http://score.test:5" },
		"service.scoring_key_file":         func(s *Service) { s.ScoringCertificateFile = "/etc/score.pem" },
		"service.scoring_certificate_file": func(s *Service) { s.ScoringCertificateFile, s.ScoringKeyFile = "score.pem", "/etc/score.key" },
	} {
		c := good()
		change(&c.Service)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
		c.Service.Name = "compute"
		if err := c.Check(); err != nil {
			t.Errorf("%s is asked of a service that has it not: %v", field, err)
		}
	}
	for in, out := range map[string]string{"127.0.0.1:7": "127.0.0.1:7", "0.0.0.0:7": "127.0.0.1:7", "[::]:7": "127.0.0.1:7", "192.0.2.1:7": "192.0.2.1:7"} {
		a, err := net.ResolveTCPAddr("tcp", in)
		if err != nil {
			t.Fatal(err)
		}
		if got := dialled(a); got != out {
			t.Errorf("%s is dialled at %s", in, got)
		}
	}
}
