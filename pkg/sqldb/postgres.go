package sqldb

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func (db *DB) openPostgres(ctx context.Context, c Config) error {
	config, err := pgx.ParseConfig(c.DSN.RevealString())
	if err != nil { // its text can hold the connection string
		return fault.InvalidArgument("the PostgreSQL connection string cannot be read")
	}
	if err := refusePlain(&config.Config); err != nil {
		return err
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = openTimeout
	}
	// Security state is read from the primary only: a standby can be behind, and does not say so.
	config.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsPrimary
	config.RuntimeParams["application_name"] = "redoubt"
	config.RuntimeParams["idle_in_transaction_session_timeout"] = idleSetting()
	if c.Schema != "" {
		config.RuntimeParams["search_path"] = c.Schema
	}
	db.writer = connectPostgres(config, 1)

	bounded, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := db.writer.PingContext(bounded); err != nil {
		return notLetIn(err, config)
	}
	if err := refuseUnsafe(bounded, db.writer); err != nil {
		return err
	}
	if err := makeSchema(bounded, db.writer, c.Schema); err != nil {
		return err
	}
	var schema sql.NullString
	if err := db.writer.QueryRowContext(bounded, "SELECT current_schema()").Scan(&schema); err != nil {
		return Fault(err)
	}
	if !schema.Valid {
		return fault.FailedPrecondition("the PostgreSQL role has no schema to live in; name one in the configuration")
	}
	db.advise = advisory("writer", schema.String)
	db.signals.prepare(config.Copy(), schema.String)

	if err := db.migratePostgres(ctx, c, advisory("migrate", schema.String)); err != nil {
		return err
	}
	reading := config.Copy()
	reading.RuntimeParams["default_transaction_read_only"] = "on"
	db.reader = connectPostgres(reading, readers())
	return db.openLives(bounded, func() *sql.DB { return connectPostgres(config, livesAtATime) })
}

// notLetIn says to the operator why the server cannot be used.
func notLetIn(err error, c *pgx.ConnConfig) error {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var certificate *tls.CertificateVerificationError
	var refused *pgconn.PgError
	var why string
	switch {
	case errors.As(err, &authority):
		why = "its certificate is not from a root that is believed; name the right one with sslrootcert"
	case errors.As(err, &host):
		why = "its certificate is for another host; use the name that the certificate has"
	case errors.As(err, &certificate):
		why = "its certificate is not valid now, or not for a server"
	case errors.As(err, &refused) && (refused.Code == "28P01" || refused.Code == "28000" && c.TLSConfig != nil):
		why = "it does not take the role or its password"
	case errors.As(err, &refused) && refused.Code == "28000":
		why = "it does not take the role, or no connection without TLS; add sslmode=verify-full and sslrootcert to the connection string"
	case errors.As(err, &refused) && refused.Code == "3D000":
		why = "it has no database of that name"
	default:
		return fault.Wrap(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "PostgreSQL at %s port %d does not let us in; the log says why", c.Host, c.Port)
	}
	return fault.Wrap(err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "PostgreSQL at %s port %d cannot be used: %s", c.Host, c.Port, why)
}

func connectPostgres(config *pgx.ConnConfig, size int) *sql.DB {
	pool := stdlib.OpenDB(*config)
	pool.SetMaxOpenConns(size)
	pool.SetMaxIdleConns(size)
	return pool
}

// refusePlain lets a connection leave the machine only with TLS that verifies the server's name (D10).
func refusePlain(c *pgconn.Config) error {
	hosts := []*pgconn.FallbackConfig{{Host: c.Host, TLSConfig: c.TLSConfig}}
	for _, h := range append(hosts, c.Fallbacks...) {
		if local(h.Host) || h.TLSConfig != nil && !h.TLSConfig.InsecureSkipVerify { //nolint:forbidigo // it is read, to refuse it
			continue
		}
		return fault.InvalidArgument("the connection to PostgreSQL at %s is not verified; add sslmode=verify-full and sslrootcert to the connection string", h.Host)
	}
	return nil
}

// local says that what is sent to the host cannot be seen by another machine. A name is not: it may resolve to anything.
func local(host string) bool {
	if strings.HasPrefix(host, "/") || host == "localhost" {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.IsLoopback()
}

// refuseUnsafe refuses a server that acknowledges what is not on disk, or that cannot tell texts apart byte by byte.
func refuseUnsafe(ctx context.Context, pool *sql.DB) error {
	for _, setting := range []struct{ name, never, query string }{
		{"fsync", "off", "SHOW fsync"},
		{"synchronous_commit", "off", "SHOW synchronous_commit"},
		{"full_page_writes", "off", "SHOW full_page_writes"},
	} {
		var value string
		if err := pool.QueryRowContext(ctx, setting.query).Scan(&value); err != nil {
			return Fault(err)
		}
		if value == setting.never {
			return fault.FailedPrecondition("PostgreSQL has %s = %s, so it acknowledges changes that it can lose; switch it on", setting.name, value)
		}
	}
	var idle string
	if err := pool.QueryRowContext(ctx, "SELECT setting FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'").Scan(&idle); err != nil {
		return Fault(err)
	}
	if idle != idleSetting() {
		return fault.FailedPrecondition("PostgreSQL, or what stands before it, does not take idle_in_transaction_session_timeout = %v from us, so a process that stands still could commit at any time; let it pass", idleInTransaction)
	}
	var encoding string
	if err := pool.QueryRowContext(ctx, "SHOW server_encoding").Scan(&encoding); err != nil {
		return Fault(err)
	}
	if encoding != "UTF8" {
		return fault.FailedPrecondition("the PostgreSQL database has the encoding %s; make one with UTF8", encoding)
	}
	return nil
}

func makeSchema(ctx context.Context, pool *sql.DB, schema string) error {
	if schema == "" {
		return nil
	}
	// Asked first, since CREATE … IF NOT EXISTS wants the right to create even where nothing is to be made.
	var exists bool
	if err := pool.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)", schema).Scan(&exists); err != nil {
		return Fault(err)
	}
	if exists {
		return nil
	}
	_, err := pool.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{schema}.Sanitize())
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "23505" {
		return nil // unique_violation: another instance made it at the same moment, which IF NOT EXISTS does not wait for
	}
	if err != nil {
		return fault.Wrap(err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "the PostgreSQL schema %s cannot be made; make it for the role", schema)
	}
	return nil
}

// migratePostgres migrates while it holds a session lock, since replicas of a service start together.
func (db *DB) migratePostgres(ctx context.Context, c Config, key int64) error {
	db.writer.SetMaxOpenConns(2) // one holds the lock
	defer db.writer.SetMaxOpenConns(1)
	holder, err := db.writer.Conn(ctx)
	if err != nil {
		return Fault(err)
	}
	defer func() { _ = holder.Close() }()
	if _, err := holder.ExecContext(ctx, "SELECT pg_advisory_lock($1)", key); err != nil {
		return Fault(err)
	}
	defer func() {
		release, cancel := context.WithTimeout(context.WithoutCancel(ctx), openTimeout)
		defer cancel()
		_, _ = holder.ExecContext(release, "SELECT pg_advisory_unlock($1)", key) // else the end of the session does
	}()
	if err := refuseNewer(ctx, db.writer, Postgres, c); err != nil {
		return err
	}
	return migrate(ctx, db.writer, Postgres, c, db.log)
}

// advisory is the key of a lock of this schema; PostgreSQL keeps those of different databases apart.
func advisory(what, schema string) int64 {
	sum := sha256.Sum256([]byte("redoubt sqldb " + what + " " + schema))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}
