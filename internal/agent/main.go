package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// mostBootstrap bounds the bootstrap document, in bytes.
const mostBootstrap = 1 << 20

// placement is the bootstrap document: what a driver says to the agent that it starts, as JSON.
type placement struct {
	Gateway     string `json:"gateway"`
	PublicURL   string `json:"public_url"`
	CAPEM       string `json:"ca_pem"`
	Run         string `json:"run"`
	RunUID      string `json:"run_uid"`
	JoinToken   string `json:"join_token"`
	Folder      string `json:"folder"` // the driver's; an agent leaves nothing there
	HeartbeatMS int64  `json:"heartbeat_ms"`
	Python      Python `json:"python"`
}

// ReadConfig reads a bootstrap document.
func ReadConfig(r io.Reader) (Config, error) {
	var p placement
	doc, err := io.ReadAll(io.LimitReader(r, mostBootstrap+1))
	if err != nil {
		return Config{}, errors.New("agent: the bootstrap document cannot be read; an agent is started by compute, not by hand")
	}
	defer clear(doc)
	if len(doc) > mostBootstrap || json.Unmarshal(doc, &p) != nil {
		return Config{}, errors.New("agent: the bootstrap document is not one; an agent is started by compute, not by hand")
	}
	roots, err := NewRoots([]byte(p.CAPEM))
	if err != nil || p.CAPEM == "" {
		return Config{}, errors.New("agent: the bootstrap document has no roots to believe the gateway by")
	}
	return Config{
		Gateway: p.Gateway, PublicURL: p.PublicURL, Roots: roots, Run: p.Run, RunUID: p.RunUID,
		JoinToken: redact.FromString(p.JoinToken), Heartbeat: time.Duration(p.HeartbeatMS) * time.Millisecond, Python: p.Python,
	}, nil
}

// Main is a whole agent process: it reads the bootstrap document, carries the run, and returns the exit status: 0 when the run is
// reported. The caller closes bootstrap, has called sandbox.MaybeStage first thing, and ends ctx to stop the agent. What the
// operator should know is written to logw.
func Main(ctx context.Context, bootstrap io.Reader, logw io.Writer) int {
	log := slog.New(slog.NewTextHandler(logw, nil))
	cfg, err := ReadConfig(bootstrap)
	if err != nil {
		log.Error(err.Error())
		return 1
	}
	cfg.Logger = log
	a, err := New(cfg)
	if err != nil {
		log.Error(err.Error())
		return 1
	}
	defer func() { _ = a.Close() }()
	if err := a.Run(ctx); err != nil {
		log.Error("the run was given up", "run_uid", cfg.RunUID, "error", reasonText(err))
		return 1
	}
	return 0
}
