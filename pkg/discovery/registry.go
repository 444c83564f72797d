package discovery

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// DefaultPrefix is where registrations stand in etcd, DefaultElectionPrefix where elections do, DefaultOwnerPrefix where stores are claimed.
const (
	DefaultPrefix         = "redoubt/services"
	DefaultElectionPrefix = "redoubt/elections"
	DefaultOwnerPrefix    = "redoubt/owner"
)

// Config is what a Registry needs. Endpoints and TLS must be set.
type Config struct {
	Endpoints []string    // "127.0.0.1:2379" or "https://etcd-1:2379"
	TLS       *tls.Config // etcd's root and a client certificate

	Prefix      string        // DefaultPrefix when empty
	DialTimeout time.Duration // of one connection attempt; 5 s when 0
	// LeaseTTL is how long a registration outlives its process, in whole seconds; 10 s when 0. etcd raises what is below 2 s.
	LeaseTTL time.Duration
	// ElectionPrefix is DefaultElectionPrefix when empty. ElectionTTL is how long an elected process that dies keeps its seat, in whole
	// seconds; 5 s when 0.
	ElectionPrefix string
	ElectionTTL    time.Duration
	// OwnerPrefix is DefaultOwnerPrefix when empty. A claim lives as long as a registration.
	OwnerPrefix string
	// Resync is how often everything is read again beside the watch; 30 s when 0.
	Resync time.Duration
	// Version of this process, for operators: it stands in its registrations.
	Version string

	Now    func() time.Time // time.Now when nil
	Logger *slog.Logger     // silent when nil
}

// Registry is one process's connection to etcd for discovery. It is safe for concurrent use.
type Registry struct {
	cfg    Config
	client *clientv3.Client
	table  *table
	ctx    context.Context
	cancel context.CancelFunc
}

// Instance is one process that serves a service.
type Instance struct {
	Service string
	Name    string
	Addr    string // host:port
}

// connectParams bounds how long a peer that is back stays unnoticed; gRPC's own bound is two minutes.
func connectParams(timeout time.Duration) grpc.DialOption {
	return grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
		MinConnectTimeout: timeout,
	})
}

// Open prepares the connection and returns without waiting for etcd. It refuses a configuration that could not work: no
// endpoint, one that is not TLS, no client certificate.
func Open(cfg Config) (*Registry, error) {
	if cfg.TLS == nil {
		return nil, fault.InvalidArgument("etcd is reached by TLS only: set etcd.ca_file, etcd.cert_file and etcd.key_file")
	}
	if len(cfg.TLS.Certificates) == 0 && cfg.TLS.GetClientCertificate == nil {
		return nil, fault.InvalidArgument("etcd needs a client certificate: set etcd.cert_file and etcd.key_file")
	}
	endpoints := make([]string, 0, len(cfg.Endpoints))
	for _, e := range cfg.Endpoints {
		host := strings.TrimPrefix(e, "https://")
		if err := checkAddr(host); err != nil {
			return nil, fault.InvalidArgument("%q is no endpoint of etcd: write host:port or https://host:port", e)
		}
		endpoints = append(endpoints, "https://"+host)
	}
	if len(endpoints) == 0 {
		return nil, fault.InvalidArgument("no endpoint of etcd is configured: set etcd.endpoints")
	}
	cfg.Endpoints = endpoints
	cfg.TLS = cfg.TLS.Clone()
	cfg.TLS.MinVersion = max(cfg.TLS.MinVersion, tls.VersionTLS13)
	cfg.Prefix = strings.Trim(cfg.Prefix, "/")
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	cfg.DialTimeout = positive(cfg.DialTimeout, 5*time.Second)
	cfg.LeaseTTL = positive(cfg.LeaseTTL, 10*time.Second)
	if cfg.ElectionPrefix = strings.Trim(cfg.ElectionPrefix, "/"); cfg.ElectionPrefix == "" {
		cfg.ElectionPrefix = DefaultElectionPrefix
	}
	if cfg.OwnerPrefix = strings.Trim(cfg.OwnerPrefix, "/"); cfg.OwnerPrefix == "" {
		cfg.OwnerPrefix = DefaultOwnerPrefix
	}
	cfg.ElectionTTL = positive(cfg.ElectionTTL, 5*time.Second)
	cfg.Resync = positive(cfg.Resync, 30*time.Second)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  cfg.TLS,
		DialTimeout:          cfg.DialTimeout,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		DialOptions:          []grpc.DialOption{grpc.WithNoProxy(), connectParams(cfg.DialTimeout)},
		Logger:               zapFrom(cfg.Logger, zapcore.ErrorLevel), // each retry is a warning
	})
	if err != nil {
		return nil, fault.Internal(err, "the client of etcd could not be made")
	}
	r := &Registry{cfg: cfg, client: client}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.table = newTable(r)
	return r, nil
}

func positive(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Client is the connection itself, for the fence. It is closed with the Registry.
func (r *Registry) Client() *clientv3.Client { return r.client }

// Close ends watches and the connection. Close registrations first: those left open stay in etcd until their lease ends.
func (r *Registry) Close() error {
	r.cancel()
	r.table.stop()
	_ = r.client.Close() // it always reports that its own context has ended
	return nil
}

// Check says whether etcd answers, with its quorum, within ctx, and takes writes; and if not, what is in the way.
func (r *Registry) Check(ctx context.Context) error {
	if _, err := r.client.Get(ctx, r.cfg.Prefix+"/", clientv3.WithLimit(1), clientv3.WithKeysOnly()); err != nil {
		return r.fault(ctx, err)
	}
	alarms, err := r.client.AlarmList(ctx)
	if err != nil {
		return r.fault(ctx, err)
	}
	for _, a := range alarms.Alarms {
		if a.Alarm == etcdserverpb.AlarmType_NOSPACE {
			return fault.New(codes.ResourceExhausted, faultv1.Reason_STORAGE_FULL,
				"etcd has reached its quota and takes nothing new: what is registered stays, what starts is not found. Compact and defragment it, then disarm the alarm (etcdctl)")
		}
	}
	return nil
}

// List reads all instances of all services from etcd, with its quorum.
func (r *Registry) List(ctx context.Context) (map[string][]Instance, error) {
	resp, err := r.client.Get(ctx, r.cfg.Prefix+"/", clientv3.WithPrefix())
	if err != nil {
		return nil, r.fault(ctx, err)
	}
	byKey := make(map[string]Instance, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		if in, ok := r.parse(kv.Key, kv.Value); ok {
			byKey[string(kv.Key)] = in
		}
	}
	return byService(byKey), nil
}

// Watch gives the instances of all services, at once if they are known and after every change, until ctx ends; the channel
// closes then. Who reads slowly misses states in between, never the last one. The maps must not be changed.
func (r *Registry) Watch(ctx context.Context) <-chan map[string][]Instance {
	out := make(chan map[string][]Instance)
	r.table.start()
	go func() {
		defer close(out)
		var last map[string][]Instance
		for {
			view := r.table.view()
			var send chan map[string][]Instance
			if view.loaded && (last == nil || !equal(view.services, last)) {
				send = out
			}
			select {
			case send <- view.services:
				last = view.services
			case <-view.changed:
			case <-ctx.Done():
				return
			case <-r.ctx.Done():
				return
			}
		}
	}()
	return out
}

func equal(a, b map[string][]Instance) bool {
	return maps.EqualFunc(a, b, func(x, y []Instance) bool { return slices.Equal(x, y) })
}

// byService sorts, so that equal states look equal.
func byService(byKey map[string]Instance) map[string][]Instance {
	out := make(map[string][]Instance)
	for _, in := range byKey {
		out[in.Service] = append(out[in.Service], in)
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b Instance) int { return strings.Compare(a.Name, b.Name) })
	}
	return out
}

// record is the part of etcd's naming format that we use.
type record struct {
	Op       int
	Addr     string
	Metadata any
}

func (r *Registry) parse(key, value []byte) (Instance, bool) {
	rest, ok := strings.CutPrefix(string(key), r.cfg.Prefix+"/")
	service, name, cut := strings.Cut(rest, "/")
	var rec record
	if !ok || !cut || checkName(service) != nil || checkName(name) != nil || json.Unmarshal(value, &rec) != nil || checkAddr(rec.Addr) != nil {
		r.cfg.Logger.Warn("an entry in etcd that is no registration is passed over", "key", string(key))
		return Instance{}, false
	}
	return Instance{Service: service, Name: name, Addr: rec.Addr}, true
}

// Described is an instance with what operators want to know of it.
type Described struct {
	Instance
	// Version of its binary, and when it registered for the first time; zero where the entry does not say.
	Version string
	Since   time.Time
	// Lease is how long the entry still stands without a word from the instance; negative if it has no lease.
	Lease time.Duration
}

// about is what a registration says of its process, as etcd's naming format has room for it.
type about struct {
	Version string `json:"version,omitempty"`
	Since   int64  `json:"since,omitempty"` // seconds since 1970
}

// Describe reads all instances from etcd, with its quorum, and the state of their leases.
func (r *Registry) Describe(ctx context.Context) ([]Described, error) {
	resp, err := r.client.Get(ctx, r.cfg.Prefix+"/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
	if err != nil {
		return nil, r.fault(ctx, err)
	}
	var out []Described
	for _, kv := range resp.Kvs {
		in, ok := r.parse(kv.Key, kv.Value)
		if !ok {
			continue
		}
		d := Described{Instance: in, Lease: -1}
		var rec struct{ Metadata about }
		if json.Unmarshal(kv.Value, &rec) == nil && rec.Metadata.Since > 0 {
			d.Version, d.Since = rec.Metadata.Version, time.Unix(rec.Metadata.Since, 0)
		}
		if kv.Lease != 0 {
			left, err := r.client.TimeToLive(ctx, clientv3.LeaseID(kv.Lease))
			if err != nil {
				return nil, r.fault(ctx, err)
			}
			if left.TTL < 0 {
				continue // it has ended since
			}
			d.Lease = time.Duration(left.TTL) * time.Second
		}
		out = append(out, d)
	}
	return out, nil
}

// Member is one process of etcd.
type Member struct {
	Endpoint, Version string
	Leader            bool
	// Bytes of its database.
	Bytes int64
	// Alarms that it has raised: "NOSPACE" means that nothing new is written until its database is smaller, "CORRUPT" that it is damaged.
	Alarms []string
	// Err says why it does not answer; then nothing else is known.
	Err error
}

// Members asks each configured endpoint of etcd by itself.
func (r *Registry) Members(ctx context.Context) []Member {
	alarms := make(map[uint64][]string)
	if resp, err := r.client.AlarmList(ctx); err == nil {
		for _, a := range resp.Alarms {
			alarms[a.MemberID] = append(alarms[a.MemberID], a.Alarm.String())
		}
	}
	var out []Member
	for _, e := range r.cfg.Endpoints {
		m := Member{Endpoint: e}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		s, err := r.client.Status(ctx, e)
		cancel()
		if m.Err = r.fault(ctx, err); err == nil {
			m.Version, m.Leader, m.Bytes, m.Alarms = s.Version, s.Leader == s.Header.MemberId, s.DbSize, alarms[s.Header.MemberId]
		}
		out = append(out, m)
	}
	return out
}

func (r *Registry) target(service string) string { return r.cfg.Prefix + "/" + service }

var nameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$`)

func checkName(s string) error {
	if !nameForm.MatchString(s) {
		return fault.InvalidArgument("%q cannot name a service or an instance: use 1 to 128 letters, digits, '.', '-' and '_'", s)
	}
	return nil
}

// checkElection accepts one name or two.
func checkElection(s string) error {
	first, second, two := strings.Cut(s, "/")
	if err := checkName(first); err != nil || !two {
		return err
	}
	return checkName(second)
}

// seconds is a time to live as etcd takes it.
func seconds(d time.Duration) int64 { return max(1, int64((d+time.Second-1)/time.Second)) }

func leaseName(id clientv3.LeaseID) string { return strconv.FormatInt(int64(id), 16) }

func checkAddr(s string) error {
	host, port, err := net.SplitHostPort(s)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || host == "" || n == 0 || strings.ContainsAny(host, "/@?# ") {
		return fault.InvalidArgument("%q is no address that others can reach: write host:port", s)
	}
	return nil
}
