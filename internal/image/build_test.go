package image

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// testAgent builds the static /init that stands in for the agent.
func testAgent(t testing.TB) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "init")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./testdata/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, msg)
	}
	return out
}

func TestBootReal(t *testing.T) {
	img, err := Boot(context.Background(), Options{Dir: "/tmp/hearth-images", Agent: testAgent(t), Progress: func(p Progress) { t.Logf("%+v", p) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(img.Kernel, img.Initrd)
}

func TestBuildReal(t *testing.T) {
	img, err := Build(context.Background(), Options{Dir: "/tmp/hearth-images", Agent: testAgent(t), Progress: func(p Progress) { t.Logf("%+v", p) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(img)
}
