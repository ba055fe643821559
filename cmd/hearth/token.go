package main

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/api"
	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/door"
)

// How long a worker's token is good for, and may be.
const (
	workerTTL    = 90 * 24 * time.Hour
	maxWorkerTTL = 400 * 24 * time.Hour
)

// workerName is what a worker may be called: its name is part of others.
var workerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (a *app) tokenCommand() *cobra.Command {
	var ttl time.Duration
	var who, vm, file, revoke string
	var admin, login, worker, list bool
	c := &cobra.Command{
		Use: "token", Short: "Let somebody in to hearth serve: a token for its HTTP API, a link to its pages", Args: cobra.NoArgs,
		Long: `Make a bearer token for the HTTP API of hearth serve, signed with the secret that the
server has: HEARTH_JWT_SECRET, HEARTH_JWT_SECRET_FILE, or the configuration file's.
Its bearer sees the machines of its subject, with --admin everybody's.

  export HEARTH_JWT_SECRET=$(openssl rand -hex 32)
  curl -H "Authorization: Bearer $(hearth token)" http://127.0.0.1:8787/api/vms

With --worker it prints a token for a hearth worker on another host, good for 90
days unless --ttl says otherwise. Any number of them are good at once: give a worker
the new one, then take the old one back.

With --login it prints a link to the pages, which works once, for ten minutes. With
--list it lists what was given out and is still good, with --revoke ID it takes that
back, at once. These four want the server's state directory: run them on its
machine, as its user.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if worker && !c.Flags().Changed("ttl") {
				ttl = workerTTL
			}
			cfg, err := config.Load(file, a.getenv)
			if err != nil {
				return usage("%v", err)
			}
			d, err := a.dirs()
			if err != nil {
				return err
			}
			passes := door.OpenPasses(d.Passes())
			who = cmp.Or(who, a.getenv("USER"), "hearth")
			switch {
			case list:
				return a.passes(passes)
			case revoke != "":
				p, err := passes.Revoke(revoke, time.Now().Add(api.MaxTokenAge))
				if err != nil {
					return &exit{exitInfrastructure, err}
				}
				_, err = fmt.Fprintf(a.err, "%s %s is not good any more\n", p.Kind, board.Clean(p.ID))
				return err
			case worker:
				if ttl <= 0 || ttl > maxWorkerTTL {
					return usage("--ttl %v: a worker's token is good for %v at most", ttl, maxWorkerTTL)
				}
				if !workerName.MatchString(who) {
					return usage("--subject %q: a worker's name is letters, digits, and . _ - between them", who)
				}
				secret, p, err := passes.Issue(door.Worker, who, ttl)
				if err != nil {
					return &exit{exitInfrastructure, err}
				}
				fmt.Fprintf(a.err, "worker's token %s for %s, good until %s\n", p.ID, who, p.Expires.Local().Format("2006-01-02 15:04"))
				_, err = fmt.Fprintln(a.out, secret)
				return err
			case login:
				secret, _, err := passes.Issue(door.Link, who, door.LinkTime)
				if err != nil {
					return &exit{exitInfrastructure, err}
				}
				_, err = fmt.Fprintf(a.out, "%s/login#%s\n", address(cfg), secret)
				return err
			}
			if cfg.JWTSecret == "" {
				return usage("HEARTH_JWT_SECRET is not set: export HEARTH_JWT_SECRET=$(openssl rand -hex 32), for this and for hearth serve")
			}
			t, err := api.Sign([]byte(cfg.JWTSecret), api.Grant{Subject: who, VM: vm, Admin: admin}, ttl)
			if err != nil {
				return usage("%v", err)
			}
			if err := passes.Note(t.ID, who, t.Scope, t.Expires); err != nil {
				fmt.Fprintf(a.err, "hearth: the token %s will not be listed: %v\n", t.ID, err) // it can be taken back all the same
			}
			_, err = fmt.Fprintln(a.out, t.Token)
			return err
		},
	}
	f := c.Flags()
	f.DurationVar(&ttl, "ttl", time.Hour, fmt.Sprintf("how long the token is good for, at most %v", api.MaxTokenAge))
	f.StringVar(&who, "subject", "", "who it is for: owns the machines made with it, and is named in logs (default: you)")
	f.StringVar(&vm, "vm", "", "good for this VM alone")
	f.BoolVar(&admin, "admin", false, "good for the machines of all subjects")
	f.BoolVar(&login, "login", false, "print a link to the pages instead")
	f.BoolVar(&worker, "worker", false, "print a token for a worker on another host instead")
	f.BoolVar(&list, "list", false, "list the tokens and logins that are good, and those taken back")
	f.StringVar(&revoke, "revoke", "", "take back the token or login of this `ID` (a token's is its jti)")
	f.StringVar(&file, "config", a.getenv("HEARTH_CONFIG"), "configuration file of the server")
	c.MarkFlagsMutuallyExclusive("login", "worker", "list", "revoke", "admin", "vm")
	return c
}

// address is where people find the server of a configuration.
func address(cfg config.Config) string {
	if cfg.URL != "" {
		return strings.TrimRight(cfg.URL, "/")
	}
	host, port, err := net.SplitHostPort(cfg.Listen)
	if ip, ierr := netip.ParseAddr(host); err != nil || host == "" || ierr == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// passes lists who was let in.
func (a *app) passes(p *door.Passes) error {
	all, err := p.List()
	if err != nil {
		return &exit{exitInfrastructure, err}
	}
	if len(all) == 0 {
		_, err := fmt.Fprintln(a.err, "nobody has a token or a login")
		return err
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tKIND\tSUBJECT\tSCOPE\tMADE\tGOOD UNTIL")
	for _, x := range all {
		until := x.Expires.Local().Format("2006-01-02 15:04")
		if x.Revoked {
			until = "taken back"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", board.Clean(x.ID), x.Kind, board.Clean(x.Subject), board.Clean(x.Scope), ago(x.Created), until)
	}
	return w.Flush()
}
