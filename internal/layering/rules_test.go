package layering

// module is the path that all of the tree's packages begin with.
const module = "github.com/redoubt-ml/redoubt"

// Levels that are not numbers of the table.
const (
	// generated packages know only each other and third parties.
	generated = 0
	// inTests packages may import everything, and only tests and other such packages may import them.
	inTests = 100
)

// units says at which level each part of the tree stands. A package belongs to the longest prefix that holds it, and all
// packages of one unit may import each other. A package may import lower levels freely, its own level only by a line in
// sameLevel, and higher levels never. "services/*" makes each folder below services a unit.
var units = map[string]int{
	"gen": generated,

	"pkg/fault":    1,
	"pkg/resource": 1,
	"pkg/redact":   1,
	"pkg/machine":  1,

	"pkg/config":    2,
	"pkg/observe":   2,
	"pkg/sqldb":     2,
	"pkg/blob":      2,
	"pkg/seal":      2,
	"pkg/svid":      2,
	"pkg/discovery": 2,
	"pkg/edge":      2,
	"pkg/mlflow":    2,
	"pkg/oauthwire": 2,
	"pkg/runspec":   2,

	"pkg/rule":     3,
	"pkg/fence":    3,
	"pkg/authn":    3,
	"pkg/authz":    3,
	"pkg/envelope": 3,
	"pkg/audit":    3,
	"pkg/leader":   3,

	"pkg/rpc": 4,

	"services/*":      5,
	"internal/agent":  5,
	"internal/backup": 5,

	"internal/node":       6,
	"internal/cli":        6,
	"internal/cli/client": 6,
	"internal/demo":       6,

	"examples": 1,
	"runtimes": 1,

	"cmd/redoubt": 7,

	"internal/layering":   inTests,
	"internal/testmesh":   inTests,
	"pkg/sqldb/sqldbtest": inTests,
	"pkg/authn/forge":     inTests,
	"test/attacks":        inTests,
	"test/backup":         inTests,
	"test/e2e":            inTests,
	"test/mutate":         inTests,
	"test/fault":          inTests,
	"test/proc":           inTests,
	"test/clients":        inTests,
	"test/scale":          inTests,
}

// sameLevel lists the imports between units of one level, importer first, each with why it must be. No service ever stands
// here: peers are reached through gen's clients or narrow interfaces. The units may not form a circle.
var sameLevel = map[[2]string]string{
	{"internal/cli", "internal/node"}:        "up and serve start what node builds",
	{"internal/demo", "internal/node"}:       "the demo starts a mesh",
	{"internal/cli", "internal/cli/client"}:  "the commands call through the client",
	{"internal/cli", "internal/demo"}:        "demo is a subcommand",
	{"internal/demo", "internal/cli/client"}: "the demo is a client like any other",
	{"pkg/resource", "pkg/fault"}:            "a malformed name is a fault of the request",
	{"pkg/audit", "pkg/envelope"}:            "an event is sealed before it is stored",
	{"pkg/authz", "pkg/rule"}:                "a decision is asked for by a method's rule",
	{"pkg/audit", "pkg/leader"}:              "the leader alone relays, and deletes by its term",
	{"pkg/audit", "pkg/rule"}:                "what is recorded of a method stands in its rule",
	{"pkg/authn", "pkg/rule"}:                "who may call a method stands in its rule",
}

// reserved lists imports that belong to few units. A prefix holds the path itself and all below it; where several match,
// the longest decides.
var reserved = []reservation{
	{prefix: "modernc.org/sqlite", why: "SQL drivers stay behind sqldb", units: []string{"pkg/sqldb"}},
	{prefix: "github.com/mattn/go-sqlite3", why: "SQL drivers stay behind sqldb", units: []string{"pkg/sqldb"}},
	{prefix: "github.com/jackc", why: "SQL drivers stay behind sqldb", units: []string{"pkg/sqldb"}},
	{prefix: "github.com/lib/pq", why: "SQL drivers stay behind sqldb", units: []string{"pkg/sqldb"}},

	{prefix: "go.etcd.io", why: "who is alive and what changed is asked of discovery and fence", units: []string{"pkg/discovery", "pkg/fence"}},
	{prefix: "go.etcd.io/etcd/server", why: "only node embeds an etcd member", units: []string{"internal/node"}},

	{prefix: "github.com/aws", why: "buckets stay behind blob", units: []string{"pkg/blob"}},
	{prefix: "gocloud.dev/blob", why: "buckets stay behind blob", units: []string{"pkg/blob"}},

	{prefix: "filippo.io/age", why: whyCrypto, units: []string{"internal/backup"}},
	{prefix: "crypto/aes", why: whyCrypto, units: crypto},
	{prefix: "crypto/cipher", why: whyCrypto, units: crypto},
	{prefix: "crypto/ecdh", why: whyCrypto, units: crypto},
	{prefix: "crypto/ecdsa", why: whyCrypto, units: crypto},
	{prefix: "crypto/ed25519", why: whyCrypto, units: crypto},
	{prefix: "crypto/elliptic", why: whyCrypto, units: crypto},
	{prefix: "crypto/hkdf", why: whyCrypto, units: crypto},
	{prefix: "crypto/hmac", why: whyCrypto, units: crypto},
	{prefix: "crypto/hpke", why: whyCrypto, units: crypto},
	{prefix: "crypto/mlkem", why: whyCrypto, units: crypto},
	{prefix: "crypto/pbkdf2", why: whyCrypto, units: crypto},
	{prefix: "crypto/rsa", why: whyCrypto, units: crypto},
	{prefix: "github.com/go-jose", why: whyCrypto, units: crypto},
	{prefix: "github.com/golang-jwt", why: whyCrypto, units: crypto},
	{prefix: "github.com/tink-crypto", why: whyCrypto, units: crypto},
	{prefix: "golang.org/x/crypto", why: whyCrypto, units: crypto},

	{prefix: "crypto/des", why: whyBroken},
	{prefix: "crypto/dsa", why: whyBroken},
	{prefix: "crypto/md5", why: whyBroken},
	{prefix: "crypto/rc4", why: whyBroken},
	{prefix: "crypto/sha1", why: whyBroken},
	{prefix: "math/rand", why: "what chooses by chance here may be guessed by an attacker: crypto/rand, or math/rand/v2 for jitter"},
	{prefix: "math/rand/v2", why: "jitter only", units: []string{"*"}},
}

const (
	whyCrypto = "ciphers, signatures and MACs stay in the packages that are read for them"
	whyBroken = "broken or outdated"
)

// crypto lists the units that may use cryptographic primitives. TLS, X.509, SHA-2, subtle and crypto/rand are everyone's.
var crypto = []string{
	"pkg/authn", "pkg/envelope", "pkg/seal", "pkg/svid", "services/identity", "services/keyvault", "internal/agent",
}

// reservation gives the imports below prefix to some units alone; no units means to nobody.
type reservation struct {
	prefix string
	units  []string
	why    string
}
