package node

import (
	"errors"
	"strings"
	"testing"
)

// A1: the listener for programs with certificates is identity's alone, and is whole or is not there.
func TestCheckMTLS(t *testing.T) {
	good := Service{Name: "identity", MTLSListen: "127.0.0.1:8455", MTLSURL: "https://redoubt.example:8455"}
	for name, tc := range map[string]struct {
		change func(*Service)
		field  string
	}{
		"as it is":                      {func(*Service) {}, ""},
		"none":                          {func(s *Service) { *s = Service{Name: "identity"} }, ""},
		"none at another":               {func(s *Service) { *s = Service{Name: "gateway"} }, ""},
		"files":                         {func(s *Service) { s.MTLSCertificateFile, s.MTLSKeyFile = "/a.crt", "/a.key" }, ""},
		"at the gateway":                {func(s *Service) { s.Name = "gateway" }, "service.mtls_listen"},
		"no address to listen at":       {func(s *Service) { s.MTLSListen = "" }, "service.mtls_listen"},
		"no port":                       {func(s *Service) { s.MTLSListen = "127.0.0.1" }, "service.mtls_listen"},
		"no URL":                        {func(s *Service) { s.MTLSURL = "" }, "service.mtls_url"},
		"in the clear":                  {func(s *Service) { s.MTLSURL = "http://redoubt.example:8455" }, "service.mtls_url"},
		"a path":                        {func(s *Service) { s.MTLSURL += "/x" }, "service.mtls_url"},
		"half the files":                {func(s *Service) { s.MTLSKeyFile = "/a.key" }, "service.mtls_key_file"},
		"a file somewhere":              {func(s *Service) { s.MTLSCertificateFile, s.MTLSKeyFile = "a.crt", "/a.key" }, "service.mtls_certificate_file"},
		"files without a listener":      {func(s *Service) { *s = Service{Name: "identity", MTLSCertificateFile: "/a.crt", MTLSKeyFile: "/a.key"} }, "service.mtls_certificate_file"},
		"an SVID that nobody can check": {func(s *Service) { s.WorkloadAPI = "unix:///run/spire.sock" }, "service.mtls_certificate_file"},
		"another's SVID, and files of it": {func(s *Service) {
			s.WorkloadAPI, s.MTLSCertificateFile, s.MTLSKeyFile = "unix:///a", "/a.crt", "/a.key"
		}, ""},
	} {
		s := good
		tc.change(&s)
		err := s.checkMTLS(func(field, what string) error { return errors.New(field + " " + what) })
		if (err == nil) != (tc.field == "") || err != nil && !strings.HasPrefix(err.Error(), tc.field+" ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
