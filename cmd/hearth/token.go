package main

import (
	"cmp"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearth-ci/hearth/internal/api"
	"github.com/hearth-ci/hearth/internal/config"
)

func (a *app) tokenCommand() *cobra.Command {
	var ttl time.Duration
	var who, vm, file string
	c := &cobra.Command{
		Use: "token", Short: "Make a token for the HTTP API, from HEARTH_JWT_SECRET", Args: cobra.NoArgs,
		Long: `Make a bearer token for the HTTP API of hearth serve, signed with the secret that the
server has: HEARTH_JWT_SECRET, HEARTH_JWT_SECRET_FILE, or the configuration file's.

  export HEARTH_JWT_SECRET=$(openssl rand -hex 32)
  curl -H "Authorization: Bearer $(hearth token)" http://127.0.0.1:8787/api/vms`,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := config.Load(file, a.getenv)
			if err != nil {
				return usage("%v", err)
			}
			if cfg.JWTSecret == "" {
				return usage("HEARTH_JWT_SECRET is not set: export HEARTH_JWT_SECRET=$(openssl rand -hex 32), for this and for hearth serve")
			}
			t, err := api.Token([]byte(cfg.JWTSecret), cmp.Or(who, a.getenv("USER"), "hearth"), vm, ttl)
			if err != nil {
				return usage("%v", err)
			}
			_, err = fmt.Fprintln(a.out, t)
			return err
		},
	}
	f := c.Flags()
	f.DurationVar(&ttl, "ttl", time.Hour, fmt.Sprintf("how long it is good for, at most %v", api.MaxTokenAge))
	f.StringVar(&who, "subject", "", "who it is for, as logs show it (default: you)")
	f.StringVar(&vm, "vm", "", "good for this VM alone")
	f.StringVar(&file, "config", "", "configuration file of the server")
	return c
}
