package gittest

import (
	"os/exec"
	"testing"
)

// A trap that does not snap proves nothing: an ordinary git falls into each.
func TestTrapsSnap(t *testing.T) {
	for name, c := range map[string]struct {
		make func(*Trap, string)
		args []string
	}{
		"embedded bare repository": {(*Trap).Bare, []string{"status"}},
		"armed repository":         {func(p *Trap, dir string) { Repository(t, dir); p.Arm(dir+"/.git", "") }, []string{"status"}},
		"filter": {func(p *Trap, dir string) { Repository(t, dir); p.Arm(dir+"/.git", "") },
			[]string{"-c", "core.fsmonitor=", "diff", "--name-only"}},
		"smudge": {func(p *Trap, dir string) { Repository(t, dir); p.Arm(dir+"/.git", "") },
			[]string{"-c", "core.fsmonitor=", "-c", "core.hooksPath=/dev/null", "checkout", "--force", "side"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, dir := New(t), t.TempDir()
			c.make(p, dir)
			cmd := exec.Command("git", c.args...)
			cmd.Dir = dir
			cmd.Run()
			if len(p.Runs()) == 0 {
				t.Error("nothing was run")
			}
		})
	}
}
