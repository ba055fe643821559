package bench

import (
	"context"
	"os"
	"testing"
	"log/slog"

	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/vm/qemu"
)

func TestZZ(t *testing.T) {
	img, err := image.Open("/tmp/vmk/images", "debian-12")
	if err != nil {
		t.Fatal(err)
	}
	r, err := VM(context.Background(), VMOptions{Driver: qemu.New(qemu.Config{CacheDir: "/tmp/vmk/cache", Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}), Image: img, RunDir: "/tmp/vmk/cache", CacheDir: "/tmp/vmk/cache", Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	r.Table(os.Stdout)
}
