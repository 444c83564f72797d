package login

import (
	"context"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// Proven is what a sign-in has shown that is over: who it was, when, and how.
type Proven struct {
	// UID of the user, and his resource name.
	UID, Name string
	// At is when he proved himself.
	At time.Time
	// AMR and ACR say how (RFC 8176, OpenID Connect Core 1.0 section 2).
	AMR []string
	ACR string
}

// Asked is what a sign-in asks for besides the password.
type Asked struct {
	*identityv1.Challenge

	// Secret and URI are of the factor that was enrolled for a sign-in on a page, "" if none was.
	Secret, URI string
}

// Finish makes what a sign-in gives, in its transaction, and writes the record of the call. It may run again if the transaction does.
type Finish func(ctx context.Context, tx *sqldb.Tx, p Proven) error
