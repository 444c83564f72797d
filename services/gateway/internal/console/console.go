package console

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

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
	cookieName = "__Host-redoubt-session"
	maxForm    = 4 << 10
	callTime   = 15 * time.Second // of all calls for one page
)

//go:embed pages
var files embed.FS

// Config of a Console. Everything but Logger is required.
type Config struct {
	// Peers are the connections to identity, workspace, compute, telemetry and inference.
	Peers map[string]grpc.ClientConnInterface
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

	signIn    identityv1.SignInServiceClient
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
	if cfg.Context == nil || cfg.Now == nil {
		return nil, errors.New("console: Context and Now are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	pages, err := template.New("").Funcs(functions(cfg.Now)).ParseFS(files, "pages/*.html")
	if err != nil {
		return nil, err
	}
	c := &Console{
		cfg: cfg, pages: pages,
		signIn: identityv1.NewSignInServiceClient(cfg.Peers["identity"]), resources: workspacev1.NewResourceServiceClient(cfg.Peers["workspace"]),
		runs: computev1.NewRunServiceClient(cfg.Peers["compute"]), metrics: telemetryv1.NewMetricServiceClient(cfg.Peers["telemetry"]),
		activity: telemetryv1.NewActivityServiceClient(cfg.Peers["telemetry"]), requests: telemetryv1.NewRequestLogServiceClient(cfg.Peers["telemetry"]),
		models: inferencev1.NewModelServiceClient(cfg.Peers["inference"]), endpoints: inferencev1.NewEndpointServiceClient(cfg.Peers["inference"]),
	}
	c.http = http.NewCrossOriginProtection().Handler(c.routes())
	return c, nil
}

func (c *Console) routes() *http.ServeMux {
	const workspace = "GET /console/w/{subscription}/{group}/{workspace}"
	mux := http.NewServeMux()
	mux.HandleFunc("GET /console/enter", c.enterPage)
	mux.HandleFunc("POST /console/enter", c.enter)
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
		cookies := r.CookiesNamed(cookieName)
		if len(cookies) != 1 || cookies[0].Value == "" {
			c.refused(w, r, "", fault.Unauthenticated("you are not signed in here"))
			return
		}
		v := &visit{r: r, ctx: metadata.AppendToOutgoingContext(c.cfg.Context(r), "authorization", "Bearer "+cookies[0].Value)}
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
	Body                        any
}

// page is a handler that asks the services and shows what they say.
func (c *Console) page(name string, load func(*visit) (view, error)) http.HandlerFunc {
	return c.signedIn(func(w http.ResponseWriter, v *visit) {
		ctx, cancel := context.WithTimeout(v.ctx, callTime)
		defer cancel()
		v.ctx = ctx
		page, err := load(v)
		if err != nil {
			c.refused(w, v.r, v.base, err)
			return
		}
		page.Base, page.Workspace = v.base, v.name
		c.show(w, http.StatusOK, name, page)
	})
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

// refusal is why there is no page.
type refusal struct {
	Status             int
	Message, RequestID string
	SignIn             bool
}

// refused shows what a service said.
func (c *Console) refused(w http.ResponseWriter, r *http.Request, base string, err error) {
	id := fault.RequestID(err)
	err = fault.FromStatus(err)
	f := fault.Describe(err)
	body := refusal{Status: statusOf(fault.Code(err)), Message: f.Message(), RequestID: id}
	if body.Status == http.StatusUnauthorized {
		body.SignIn = true
		if len(r.CookiesNamed(cookieName)) > 0 {
			forget(w)
		}
	}
	c.show(w, body.Status, "refused.html", view{Title: http.StatusText(body.Status), Base: base, Body: body})
}

func statusOf(code codes.Code) int {
	switch code {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange:
		return http.StatusBadRequest
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.NotFound:
		return http.StatusNotFound
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// forget takes the cookie away.
func forget(w http.ResponseWriter) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode, MaxAge: -1})
}

// enterPage asks before it uses the code: programs that look at links ahead of people must not use it up.
func (c *Console) enterPage(w http.ResponseWriter, r *http.Request) {
	c.show(w, http.StatusOK, "enter.html", view{Title: "Sign in", Body: r.URL.Query().Get("code")})
}

// enter turns a code into a session.
func (c *Console) enter(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil || len(r.PostForm["code"]) != 1 {
		c.refused(w, r, "", fault.InvalidArgument("the form cannot be read"))
		return
	}
	ctx, cancel := context.WithTimeout(c.cfg.Context(r), callTime)
	defer cancel()
	session, err := c.signIn.RedeemSignInCode(ctx, &identityv1.RedeemSignInCodeRequest{Code: r.PostForm.Get("code")})
	if err != nil {
		c.refused(w, r, "", err)
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: session.GetAccessToken(), Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode,
		Expires: session.GetExpireTime().AsTime(),
	})
	http.Redirect(w, r, Prefix, http.StatusSeeOther)
}

// leave ends the session, here and where it was begun.
func (c *Console) leave(w http.ResponseWriter, r *http.Request) {
	c.signedIn(func(w http.ResponseWriter, v *visit) {
		ctx, cancel := context.WithTimeout(v.ctx, callTime)
		defer cancel()
		if _, err := c.signIn.SignOut(ctx, &identityv1.SignOutRequest{}); err != nil && fault.Code(fault.FromStatus(err)) != codes.Unauthenticated {
			c.refused(w, r, "", err) // it goes on: the cookie stays
			return
		}
		forget(w)
		c.show(w, http.StatusOK, "left.html", view{Title: "Signed out"})
	})(w, r)
}

func (c *Console) file(w http.ResponseWriter, _ *http.Request, name, kind string) {
	b, err := files.ReadFile("pages/" + name)
	if err != nil {
		http.NotFound(w, nil)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "max-age=300")
	_, _ = w.Write(b)
}

// functions are what the templates call.
func functions(now func() time.Time) template.FuncMap {
	return template.FuncMap{
		"last": last,
		"ago": func(t interface{ AsTime() time.Time }) string {
			at := t.AsTime()
			if at.Unix() <= 0 {
				return ""
			}
			return now().Sub(at).Truncate(time.Second).String() + " ago"
		},
		"state": plainly,
	}
}

// plainly is the value of an enum as people read it.
func plainly(s fmt.Stringer) string {
	text := s.String()
	for _, prefix := range []string{"STATE_", "RESULT_", "KIND_", "AUTH_"} {
		text = strings.TrimPrefix(text, prefix)
	}
	return strings.ToLower(strings.ReplaceAll(text, "_", " "))
}
