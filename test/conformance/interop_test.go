package conformance

import (
	"crypto/x509"
	"testing"
	"time"
)

func newPool(c *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c)
	return p
}

// I: grpc-go's interoperability client passes through the gateway, in every case that needs no cloud's credentials.
func TestInterop(t *testing.T) {
	f := start(t)
	for _, name := range []string{
		"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream", "timeout_on_sleeping_server",
		"cancel_after_begin", "cancel_after_first_response", "status_code_and_message", "special_status_message", "custom_metadata",
		"unimplemented_method", "unimplemented_service", "orca_per_rpc",
	} {
		t.Run(name, func(t *testing.T) {
			out, err := run(t, 20*time.Second, "client", "--use_tls", "--use_test_ca", "--ca_file="+f.ca, "--server_host=127.0.0.1", "--server_port="+f.port, "--server_host_override=localhost", "--test_case="+name, `--service_config_json={"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}`)
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	t.Run("what fails is seen", func(t *testing.T) {
		if _, err := run(t, 20*time.Second, "client", "--use_tls", "--use_test_ca", "--ca_file="+f.ca, "--server_host=127.0.0.1", "--server_port="+f.port, "--server_host_override=localhost", "--test_case=service_account_creds"); err == nil {
			t.Error("a case that cannot pass has passed")
		}
	})
}
