package main

import (
	"log/slog"
	"strings"

	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/registry"
)

// openRegistry opens what machines pull container images from.
func openRegistry(dirs config.Dirs, registries map[string]registry.Upstream, log *slog.Logger) (*registry.Cache, error) {
	for name, up := range registries {
		if err := registry.CheckUpstream(name, up); err != nil {
			return nil, usage("%v", err)
		}
	}
	c, err := registry.Open(registry.Config{Dir: dirs.Registry(), Registries: registries, Log: log})
	if err != nil {
		return nil, &exit{exitInfrastructure, err}
	}
	return c, nil
}

// parseRegistries reads --registry HOST=URL.
func parseRegistries(list []string) (map[string]registry.Upstream, error) {
	found := map[string]registry.Upstream{}
	for _, s := range list {
		name, address, ok := strings.Cut(s, "=")
		if !ok || address == "" {
			return nil, usage("--registry %.80q: want HOST=URL, like localhost:5001=http://localhost:5001", name)
		}
		up := registry.Upstream{URL: address}
		if err := registry.CheckUpstream(name, up); err != nil {
			return nil, usage("--registry: %v", err)
		}
		found[name] = up
	}
	return found, nil
}

// upstreams are the registries of a server's settings.
func upstreams(settings map[string]config.Registry) map[string]registry.Upstream {
	found := map[string]registry.Upstream{}
	for name, r := range settings {
		found[name] = registry.Upstream{URL: r.URL, Username: r.Username, Password: r.Password}
	}
	return found
}
