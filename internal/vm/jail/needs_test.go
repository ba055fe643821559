package jail_test

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hearth-ci/hearth/internal/vm/jail"
)

// A static program behind one that is not is no module of it: the loader, asked
// for its libraries, died.
func TestNeedsOfAStaticProgram(t *testing.T) {
	static := filepath.Join(t.TempDir(), "static")
	cmd := exec.Command("go", "build", "-o", static, "github.com/hearth-ci/hearth/cmd/hearth-guest")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	needs, err := jail.Needs(t.Context(), "/bin/sh", static)
	if err != nil || !slices.Contains(needs, static) || !slices.Contains(needs, "/bin/sh") || len(needs) < 4 {
		t.Errorf("%q, %v", needs, err)
	}
}
