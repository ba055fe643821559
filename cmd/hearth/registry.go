package main

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/registry"
)

// openRegistry opens what machines pull container images from.
func openRegistry(dirs config.Dirs, registries map[string]registry.Upstream, keep config.Retention, log *slog.Logger) (*registry.Cache, error) {
	for name, up := range registries {
		if err := registry.CheckUpstream(name, up); err != nil {
			return nil, usage("%v", err)
		}
	}
	c, err := registry.Open(registry.Config{Dir: dirs.Registry(), Limit: unlimited(int64(keep.ContainerBytes)), Registries: registries, Log: log})
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

// listContainers shows what is kept of container images.
func (a *app) listContainers(asJSON bool) error {
	dirs, err := a.dirs()
	if err != nil {
		return err
	}
	all, err := registry.List(dirs.Registry())
	if err != nil {
		return &exit{exitInfrastructure, err}
	}
	enc, w := board.NewEncoder(a.out), tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	if len(all) == 0 && !asJSON {
		fmt.Fprintln(a.err, "nothing of container images")
	} else if !asJSON {
		fmt.Fprintln(w, "REGISTRY\tDIGEST\tSIZE\tUSED")
	}
	for _, k := range slices.Backward(all) {
		if asJSON {
			if err := enc.Encode(k); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", board.Clean(k.Registry), board.Clean(k.Digest), board.Amount(k.Bytes), ago(k.Used))
	}
	return w.Flush()
}

// removeContainers removes what is kept of container images: those of these digests, or
// all.
func (a *app) removeContainers(digests []string) error {
	dirs, err := a.dirs()
	if err != nil {
		return err
	}
	removed, err := registry.Trim(dirs.Registry(), registry.Limits{Match: func(k registry.Kept) bool {
		return len(digests) == 0 || slices.Contains(digests, k.Digest)
	}})
	if err != nil {
		return &exit{exitInfrastructure, err}
	}
	var freed int64
	for _, k := range removed {
		freed += k.Bytes
		digests = slices.DeleteFunc(digests, func(d string) bool { return d == k.Digest })
	}
	fmt.Fprintf(a.err, "removed %d, %s\n", len(removed), board.Amount(freed))
	if len(digests) > 0 {
		return usage("nothing is kept of %s: hearth cache list --containers", board.Clean(strings.Join(digests, ", ")))
	}
	return nil
}
