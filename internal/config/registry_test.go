package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRegistries(t *testing.T) {
	dir := t.TempDir()
	load := func(settings string) (Config, error) {
		file := filepath.Join(dir, "settings.json")
		if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
			t.Fatal(err)
		}
		return Load(file, func(string) string { return "" })
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := load(`{"registries": {"localhost:5001": "http://localhost:5001", "ghcr.io": {"username": "bot", "password_file": "` + secret + `"}}}`)
	if err != nil || c.Registries["localhost:5001"].URL != "http://localhost:5001" || c.Registries["ghcr.io"].Password != "sesame" {
		t.Errorf("%+v %v", c.Registries, err)
	}
	for settings, want := range map[string]string{
		`{"registries": {"ghcr.io": {"password": "sesame"}}}`:                              "password_file",
		`{"registries": {"ghcr.io": {"username": "bot"}}}`:                                 "go together",
		`{"registries": {"ghcr.io": {"username": "bot", "password_file": "/nowhere/it"}}}`: "ghcr.io: reading a secret",
		`{"registries": {"ghcr.io": 5}}`:                                                   "an address or an object",
	} {
		if _, err := load(settings); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: %v", settings, err)
		}
	}
}
