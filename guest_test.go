package hearth

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"
)

// bare is a machine that can run commands, on this host.
type bare struct{ Machine }

func (bare) ID() string { return "bare" }
func (bare) Err() error { return nil }
func (bare) Exec(ctx context.Context, c Command) (Exit, error) {
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = c.Env, c.Stdout, c.Stderr
	err := cmd.Run()
	if ended, ok := errors.AsType[*exec.ExitError](err); ok {
		return Exit{Code: ended.ExitCode()}, nil
	}
	return Exit{}, err
}

// What the engine asks of a machine's files is done with commands.
func TestInside(t *testing.T) {
	g, ctx, dir := inside{&Session{Machine: bare{}}}, t.Context(), filepath.Join(t.TempDir(), "a b", "-c")
	if err := g.MkdirAll(ctx, dir, 0o755, ""); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "f")
	if err := g.run(ctx, nil, "sh", "-c", `printf 12345 > "$0"`, file); err != nil {
		t.Fatal(err)
	}
	if b, err := g.ReadFile(ctx, file, 5); err != nil || string(b) != "12345" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := g.ReadFile(ctx, file, 4); err == nil {
		t.Error("more than asked for was read")
	}
	if _, err := g.Stat(ctx, file); err != nil {
		t.Error(err)
	}
	for _, none := range []string{dir, file + "x"} {
		if _, err := g.Stat(ctx, none); err == nil {
			t.Errorf("%s is a file", none)
		}
	}
}
