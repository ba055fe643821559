package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// resolver brings actions and workflows of other repositories: from the
// directories that the user names, from the cache, from the server.
func (a *app) resolver(o runOptions, dirs config.Dirs, token string) (*action.Resolver, error) {
	overrides := map[string]string{}
	for _, kv := range o.local {
		name, dir, ok := strings.Cut(kv, "=")
		if !ok || strings.Count(name, "/") < 1 {
			return nil, usage("--local-repository %s: want owner/repo@ref=DIR", kv)
		}
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, usage("--local-repository %s: %v", kv, err)
		}
		if info, err := os.Stat(abs); err != nil || !info.IsDir() {
			return nil, usage("--local-repository %s: there is no directory %s", name, dir)
		}
		overrides[name] = abs
	}
	return action.NewResolver(action.Config{Dir: filepath.Join(dirs.Cache, "actions"), Overrides: overrides, Offline: o.offline, Token: token, Log: a.log()}), nil
}

// load reads a reusable workflow: of this repository from the working tree, of
// others through the resolver.
func (a *app) load(ctx context.Context, p *project, resolver *action.Resolver) workflow.Load {
	return func(uses string, from *workflow.Workflow) (string, []byte, error) {
		// Said in a file of another repository, ./ means that one.
		if place, at, ok := strings.Cut(from.File, "@"); ok && strings.HasPrefix(uses, "./") {
			if parts := strings.SplitN(place, "/", 3); len(parts) == 3 {
				uses = parts[0] + "/" + parts[1] + "/" + strings.TrimPrefix(uses, "./") + "@" + at
			}
		}
		ref, err := action.ParseRef(uses)
		if err != nil {
			return "", nil, err
		}
		switch ref.Kind {
		case action.Local, action.Own:
			b, err := p.readFile(ctx, ref.Path, action.MaxFile)
			return ref.Path, b, err
		}
		tree, err := resolver.Resolve(ctx, ref)
		if err != nil {
			return "", nil, err
		}
		b, err := tree.ReadFile(ctx, ref.Path, action.MaxFile)
		return uses, b, err
	}
}

// readFile reads a file of the repository; name is relative to its root.
func (p *project) readFile(_ context.Context, name string, max int64) ([]byte, error) {
	root, err := os.OpenRoot(p.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("%s is larger than %d bytes", name, max)
	}
	return b, err
}
