// Package imagetest gives tests of other packages real images, built once and
// kept in the user's cache directory (hearth-test/images; HEARTH_TEST_IMAGES
// overrides it), so that only the first test on a machine waits for Debian.
//
// A test on a machine that lacks a program of the build is skipped, loudly and
// with the command that installs it; any other failure fails the test.
package imagetest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hearth-ci/hearth/internal/image"
)

// Dir returns the directory where tests keep images.
func Dir(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("HEARTH_TEST_IMAGES"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatalf("no cache directory (set HEARTH_TEST_IMAGES): %v", err)
	}
	return filepath.Join(cache, "hearth-test", "images")
}

// Agent builds cmd/hearth-guest of this module and returns its path.
func Agent(t testing.TB) string {
	t.Helper()
	return Program(t, "github.com/hearth-ci/hearth/cmd/hearth-guest")
}

// Program builds a static program that can serve as /init and returns its path.
func Program(t testing.TB, pkg string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "init")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, msg)
	}
	return out
}

// Boot returns an image of kernel and initrd only, with agent as /init.
func Boot(t testing.TB, agent string) *image.Image {
	t.Helper()
	return get(t, image.Boot, agent)
}

// Build returns the default image, with agent as /init.
func Build(t testing.TB, agent string) *image.Image {
	t.Helper()
	return get(t, image.Build, agent)
}

func get(t testing.TB, build func(context.Context, image.Options) (*image.Image, error), agent string) *image.Image {
	t.Helper()
	img, err := build(t.Context(), image.Options{Dir: Dir(t), Agent: agent, Progress: func(p image.Progress) {
		if p.Done && !p.Cached {
			t.Logf("image: %s built in %v, %d MB", p.Part, p.Took, p.Bytes/1e6)
		}
	}})
	if missing, ok := errors.AsType[*image.MissingToolError](err); ok {
		t.Skipf("SKIPPED, NOT TESTED: no image can be built here: %v", missing)
	}
	if err != nil {
		t.Fatalf("building the image: %v", err)
	}
	release, err := img.Hold()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return img
}
