package console

import (
	"net/http"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const programsPath = Prefix + "service-principals/"

var programActions = []string{"identity/servicePrincipals/write", "identity/servicePrincipals/delete", "identity/servicePrincipals/secrets/write"}

func programName(v *visit) string { return "servicePrincipals/" + v.r.PathValue("id") }

func (c *Console) programRoutes(mux *http.ServeMux) {
	all := func(*visit) string { return programsPath }
	one := func(v *visit) string { return programsPath + v.r.PathValue("id") }
	mux.HandleFunc("GET "+programsPath+"{$}", c.page("programs.html", c.programList))
	mux.HandleFunc("GET "+programsPath+"{id}", c.page("program.html", c.program))
	mux.HandleFunc("POST "+programsPath+"{$}", c.act(all, func(v *visit, f form) (outcome, error) {
		p, err := c.directory.CreateServicePrincipal(v.ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: f["id"], DisplayName: f["display_name"]})
		return outcome{to: programsPath + last(p.GetName()), note: "made"}, err
	}))
	mux.HandleFunc("POST "+programsPath+"{id}/add-secret", c.act(one, func(v *visit, f form) (outcome, error) {
		until, err := c.until(f["days"])
		if err != nil {
			return outcome{}, err
		}
		s, err := c.directory.AddServicePrincipalSecret(v.ctx, &identityv1.AddServicePrincipalSecretRequest{Name: programName(v), ExpireTime: until})
		return outcome{page: "program-secret.html", view: view{Title: "A secret of " + programName(v), Room: "programs", Body: struct {
			Secret *identityv1.ServicePrincipalSecret
			Back   string
		}{s, one(v)}}}, err
	}))
	mux.HandleFunc("POST "+programsPath+"{id}/add-key", c.act(one, func(v *visit, f form) (outcome, error) {
		until, err := c.until(f["days"])
		if err != nil {
			return outcome{}, err
		}
		_, err = c.directory.AddServicePrincipalKey(v.ctx, &identityv1.AddServicePrincipalKeyRequest{Name: programName(v), Pem: f["pem"], ExpireTime: until})
		return outcome{to: one(v), note: "added"}, err
	}))
	mux.HandleFunc("POST "+programsPath+"{id}/remove-credential", c.act(one, func(v *visit, f form) (outcome, error) {
		_, err := c.directory.DeleteServicePrincipalCredential(v.ctx, &identityv1.DeleteServicePrincipalCredentialRequest{Name: programName(v), CredentialId: f["credential"]})
		return outcome{to: one(v), note: "removed"}, err
	}))
	for verb, disabled := range map[string]bool{"disable": true, "enable": false} {
		mux.HandleFunc("POST "+programsPath+"{id}/"+verb, c.act(one, func(v *visit, _ form) (outcome, error) {
			_, err := c.directory.SetServicePrincipalDisabled(v.ctx, &identityv1.SetServicePrincipalDisabledRequest{Name: programName(v), Disabled: disabled})
			return outcome{to: one(v), note: verb + "d"}, err
		}))
	}
	mux.HandleFunc("POST "+programsPath+"{id}/delete", c.act(one, func(v *visit, _ form) (outcome, error) {
		_, err := c.directory.DeleteServicePrincipal(v.ctx, &identityv1.DeleteServicePrincipalRequest{Name: programName(v)})
		return outcome{to: programsPath, note: "deleted"}, err
	}))
}

// until is a number of days from now.
func (c *Console) until(days string) (*timestamppb.Timestamp, error) {
	n, err := strconv.ParseUint(days, 10, 16)
	if err != nil || n == 0 {
		return nil, fault.InvalidArgument("for how many days is it to be good?").Field("days", "is no number of days")
	}
	return timestamppb.New(c.cfg.Now().Add(time.Duration(n) * 24 * time.Hour)), nil
}

func (c *Console) programList(v *visit) (view, error) {
	programs, err := c.directory.ListServicePrincipals(v.ctx, &identityv1.ListServicePrincipalsRequest{PageSize: pageSize, PageToken: token(v)})
	if err != nil {
		return view{}, err
	}
	may, err := c.may(v, programActions[0])
	return view{Title: "Service principals", Room: "programs", May: may, Body: programs}, err
}

func (c *Console) program(v *visit) (view, error) {
	p, err := c.directory.GetServicePrincipal(v.ctx, &identityv1.GetServicePrincipalRequest{Name: programName(v)})
	if err != nil {
		return view{}, err
	}
	credentials, err := c.directory.ListServicePrincipalCredentials(v.ctx, &identityv1.ListServicePrincipalCredentialsRequest{Name: programName(v)})
	if err != nil {
		return view{}, err
	}
	may, err := c.may(v, programActions...)
	return view{Title: p.GetName(), Room: "programs", May: may, Body: struct {
		Program     *identityv1.ServicePrincipal
		Credentials []*identityv1.ServicePrincipalCredential
		Here        string
	}{p, credentials.GetCredentials(), programsPath + last(p.GetName())}}, err
}
