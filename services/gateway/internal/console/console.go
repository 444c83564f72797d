package console

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"time"

	"google.golang.org/grpc"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Prefix is the path that the console stands below.
const Prefix = "/console/"

const (
	maxForm  = 32 << 10
	callTime = 15 * time.Second // of all calls for one page
)

//go:embed pages
var files embed.FS

// Config of a Console. Everything but Logger is required.
type Config struct {
	// Peers are the connections to identity, workspace, compute, telemetry and inference.
	Peers map[string]grpc.ClientConnInterface
	// PublicURL is the installation's address as browsers know it: the issuer, and what proofs name.
	PublicURL string
	// Context is that of the RPCs which a request becomes, without a token.
	Context func(*http.Request) context.Context
	// Now is the clock; Logger takes faults of ours.
	Now    func() time.Time
	Logger *slog.Logger
}

// Console serves the pages. It is safe for concurrent use.
type Console struct {
	cfg   Config
	pages *template.Template
	http  http.Handler

	provider  identityv1.ProviderServiceClient
	signIn    identityv1.SignInServiceClient
	accounts  identityv1.AccountServiceClient
	factors   identityv1.FactorServiceClient
	directory identityv1.DirectoryServiceClient
	access    workspacev1.AccessServiceClient
	resources workspacev1.ResourceServiceClient
	runs      computev1.RunServiceClient
	metrics   telemetryv1.MetricServiceClient
	activity  telemetryv1.ActivityServiceClient
	requests  telemetryv1.RequestLogServiceClient
	models    inferencev1.ModelServiceClient
	endpoints inferencev1.EndpointServiceClient
}

// New makes the console.
func New(cfg Config) (*Console, error) {
	for _, peer := range []string{"identity", "workspace", "compute", "telemetry", "inference"} {
		if cfg.Peers[peer] == nil {
			return nil, errors.New("console: there is no connection to " + peer)
		}
	}
	if cfg.Context == nil || cfg.Now == nil || cfg.PublicURL == "" {
		return nil, errors.New("console: PublicURL, Context and Now are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	pages, err := template.New("").Funcs(functions(cfg.Now)).ParseFS(files, "pages/*.html")
	if err != nil {
		return nil, err
	}
	peers := make(map[string]grpc.ClientConnInterface, len(cfg.Peers))
	for name, p := range cfg.Peers {
		peers[name] = proofs{ClientConnInterface: p, publicURL: cfg.PublicURL}
	}
	c := &Console{
		cfg: cfg, pages: pages,
		provider: identityv1.NewProviderServiceClient(peers["identity"]), signIn: identityv1.NewSignInServiceClient(peers["identity"]),
		accounts: identityv1.NewAccountServiceClient(peers["identity"]), factors: identityv1.NewFactorServiceClient(peers["identity"]),
		directory: identityv1.NewDirectoryServiceClient(peers["identity"]),
		access:    workspacev1.NewAccessServiceClient(peers["workspace"]), resources: workspacev1.NewResourceServiceClient(peers["workspace"]),
		runs: computev1.NewRunServiceClient(peers["compute"]), metrics: telemetryv1.NewMetricServiceClient(peers["telemetry"]),
		activity: telemetryv1.NewActivityServiceClient(peers["telemetry"]), requests: telemetryv1.NewRequestLogServiceClient(peers["telemetry"]),
		models: inferencev1.NewModelServiceClient(peers["inference"]), endpoints: inferencev1.NewEndpointServiceClient(peers["inference"]),
	}
	c.http = c.protected(c.routes())
	return c, nil
}

// protected refuses what another site's page sends.
func (c *Console) protected(next http.Handler) http.Handler {
	p := http.NewCrossOriginProtection()
	p.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.show(w, http.StatusForbidden, "refused.html", view{Title: http.StatusText(http.StatusForbidden), Body: refusal{
			Status: http.StatusForbidden, Message: "This form was sent by another site, so nothing was done.",
		}})
	}))
	return p.Handler(next)
}

func (c *Console) routes() *http.ServeMux {
	const workspace = "GET /console/w/{subscription}/{group}/{workspace}"
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+beginPath, c.begin)
	mux.HandleFunc("GET "+answerPath, c.answered)
	mux.HandleFunc("GET /console/enter", c.enterPage)
	mux.HandleFunc("POST /console/enter", c.enter)
	mux.HandleFunc("GET /console/set-password", c.setPasswordPage)
	mux.HandleFunc("POST /console/set-password", c.setPassword)
	mux.HandleFunc("POST /console/leave", c.leave)
	for name, kind := range map[string]string{"style.css": "text/css; charset=utf-8", "live.js": "text/javascript; charset=utf-8"} {
		mux.HandleFunc("GET /console/"+name, func(w http.ResponseWriter, r *http.Request) { c.file(w, r, name, kind) })
	}
	mux.HandleFunc("GET /console/{$}", c.page("workspaces.html", c.workspaces))
	mux.HandleFunc(workspace+"/{$}", c.page("runs.html", c.runList))
	mux.HandleFunc(workspace+"/runs/{run}", c.page("run.html", c.run))
	mux.HandleFunc(workspace+"/runs/{run}/chart.svg", c.signedIn(c.chart))
	mux.HandleFunc(workspace+"/runs/{run}/live", c.signedIn(c.live))
	mux.HandleFunc(workspace+"/models", c.page("models.html", c.modelList))
	mux.HandleFunc(workspace+"/endpoints", c.page("endpoints.html", c.endpointList))
	mux.HandleFunc(workspace+"/endpoints/{endpoint}", c.page("endpoint.html", c.endpoint))
	mux.HandleFunc(workspace+"/activity", c.page("activity.html", c.activityList))
	c.accountRoutes(mux)
	c.userRoutes(mux)
	c.groupRoutes(mux)
	c.programRoutes(mux)
	mux.HandleFunc("/console/", func(w http.ResponseWriter, r *http.Request) {
		c.refused(w, r, "", fault.NotFound("there is no such page"))
	})
	return mux
}

// ServeHTTP implements http.Handler.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	c.http.ServeHTTP(w, r)
}

// visit is one request of a browser that has a session.
type visit struct {
	r *http.Request
	// ctx carries the session's token to the services.
	ctx context.Context
	// base is the path of the workspace, and name its resource name; both are "" outside of one.
	base, name string
}

// signedIn hands requests on that have a session, as far as a cookie tells; whether it is one, the services say.
func (c *Console) signedIn(next func(http.ResponseWriter, *visit)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s, ok := sessionOf(r, c.cfg.Now)
		if !ok {
			c.refused(w, r, "", fault.Unauthenticated("you are not signed in here"))
			return
		}
		v := &visit{r: r, ctx: c.with(r, s)}
		if s, g, ws := r.PathValue("subscription"), r.PathValue("group"), r.PathValue("workspace"); ws != "" {
			v.base = Prefix + "w/" + s + "/" + g + "/" + ws
			v.name = "subscriptions/" + s + "/resourceGroups/" + g + "/workspaces/" + ws
		}
		next(w, v)
	}
}

// view is what every page knows, and what it is about.
type view struct {
	Title, Base, Workspace, Tab string
	// Room is which of the rooms it is, Who is signed in, and Note what was just done.
	Room, Who, Note string
	// Next is where the page goes on to by itself.
	Next string
	// May are the actions that the visitor has at the installation, of those that the page has buttons for.
	May  map[string]bool
	Body any
}

// page is a handler that asks the services and shows what they say. Who has no session is sent to the provider.
func (c *Console) page(name string, load func(*visit) (view, error)) http.HandlerFunc {
	in := c.signedIn(func(w http.ResponseWriter, v *visit) {
		ctx, cancel := context.WithTimeout(v.ctx, callTime)
		defer cancel()
		v.ctx = ctx
		page, err := load(v)
		if err != nil {
			c.refusedAt(w, v, v.r.URL.RequestURI(), err)
			return
		}
		page.Note = notes[v.r.URL.Query().Get("done")]
		c.shown(w, v, name, page)
	})
	return func(w http.ResponseWriter, r *http.Request) {
		if len(r.CookiesNamed(cookieName)) == 0 {
			http.Redirect(w, r, toSignIn(r.URL.RequestURI(), ""), http.StatusSeeOther)
			return
		}
		in(w, r)
	}
}

// shown shows a page to who is signed in.
func (c *Console) shown(w http.ResponseWriter, v *visit, name string, page view) {
	who, err := c.signIn.WhoAmI(v.ctx, &identityv1.WhoAmIRequest{})
	if err != nil {
		c.refusedAt(w, v, v.r.URL.RequestURI(), err)
		return
	}
	page.Base, page.Workspace, page.Who = v.base, v.name, who.GetPrincipal()
	if page.Room == "" {
		page.Room = "workspaces"
	}
	c.show(w, http.StatusOK, name, page)
}

func (c *Console) show(w http.ResponseWriter, status int, name string, page view) {
	var b bytes.Buffer
	if err := c.pages.ExecuteTemplate(&b, name, page); err != nil {
		c.cfg.Logger.Error("a page of the console could not be made", "page", name, "error", err)
		http.Error(w, "this page could not be made; the fault is ours", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // fails when the browser is gone
}
