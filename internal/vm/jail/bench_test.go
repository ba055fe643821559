package jail_test

import (
	"os/exec"
	"testing"

	"github.com/hearth-ci/hearth/internal/vm/jail"
)

// What the walls cost: a program that ends at once, with them and without.
func BenchmarkStart(b *testing.B) {
	program, err := exec.LookPath("true")
	if err != nil {
		b.Skip(err)
	}
	needs, err := jail.Needs(b.Context(), program)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Plain", func(b *testing.B) {
		for b.Loop() {
			if err := exec.Command(program).Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Jail", func(b *testing.B) {
		dir := b.TempDir()
		for b.Loop() {
			locked(func() {
				c := &jail.Cmd{Name: "bench", Args: []string{program}, See: needs, Dir: dir, Openings: jail.OpenWriting}
				if err := c.Start(); err != nil {
					b.Error(err)
				} else if err := c.Wait(); err != nil {
					b.Error(err)
				}
			})
		}
	})
}
