package runspec

import (
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Environment refuses variables that cannot be passed on, that the agent sets, or that look like a secret. The field of a refusal is
// "environment".
func Environment(env map[string]string) error {
	for k, v := range env {
		switch {
		case !envName.MatchString(k):
			return fault.InvalidArgument("the name of an environment variable is letters, digits and underscores").Field("environment", "has a name that is not allowed")
		case reserved(k):
			return fault.InvalidArgument("the environment variable %s is set by the agent", k).Field("environment", k+" is set by the agent")
		case strings.ContainsRune(v, 0) || !utf8.ValidString(v):
			return fault.InvalidArgument("the environment variable %s holds bytes that cannot be passed on", k).Field("environment", k+" holds a NUL byte")
		case looksSecret(k, v):
			return fault.InvalidArgument("the environment variable %s looks like a secret: whoever may read this reads it; put it into the vault (`redoubt secret set`) instead", k).Field("environment", k+" looks like a secret")
		}
	}
	return nil
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,255}$`)

func reserved(k string) bool {
	return strings.HasPrefix(k, "REDOUBT_") || strings.HasPrefix(k, "MLFLOW_") || strings.HasPrefix(k, "LD_") || k == "IDENTITY_ENDPOINT" || k == "MSI_ENDPOINT"
}

// secretValues are the shapes in which credentials usually come.
var secretValues = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----|\bA(KIA|SIA)[0-9A-Z]{16}\b|\brdt_[A-Za-z0-9]{8,}|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.|\bgh[opsur]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{20,}|\bglpat-[A-Za-z0-9_-]{20,}|\bhf_[A-Za-z0-9]{30,}|\bxox[abprs]-[A-Za-z0-9-]{10,}|(?i)://[^/\s:@]+:[^/\s:@]+@|AccountKey=`)

var secretNames = regexp.MustCompile(`(?i)(^|_)((PG)?PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIALS?)($|_)|_PWD$`)

func looksSecret(k, v string) bool {
	return secretValues.MatchString(v) || v != "" && secretNames.MatchString(k)
}
