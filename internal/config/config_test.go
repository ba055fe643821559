package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func env(kv ...string) func(string) string {
	return func(k string) string {
		for i := 0; i < len(kv); i += 2 {
			if kv[i] == k {
				return kv[i+1]
			}
		}
		return ""
	}
}

func TestValidateNamesEverythingAtOnce(t *testing.T) {
	c := Default()
	c.Listen, c.Driver, c.Learn, c.CPUs, c.AppID, c.JWTSecret = "nowhere", "docker", "maybe", 0, 7, "short"
	err := c.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"listen", "driver", "learn", "cpus", "app_key_file", "webhook secret", "JWT secret"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s in: %v", want, err)
		}
	}
	c = Default()
	c.SecretsFile, c.SecretsDir = "/x", "/nowhere/at/all"
	c.Repositories = Repositories{"acme*": {}, "a/b": {Approval: "never", Learn: "maybe", Limits: Limits{Network: "some", MaxTimeout: 1, CPUs: 99,
		MemoryMiB: 1, Machines: -1},
		Fork: Limits{Network: "allow:a b"}}, "A/b": {}}
	err = c.Validate()
	for _, want := range []string{"secrets_file is gone", "org/OWNER, repo/OWNER/NAME", "secrets_dir: ", `"acme*": want`, "approval",
		`learn "maybe"`, `"some"`, "max_timeout",
		"cpus 99", "memory_mib 1", "machines", "fork: ", "twice"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s in: %v", want, err)
		}
	}
	if err := Default().Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
}

func TestLoadOrder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "hearth.json")
	secret := filepath.Join(dir, "secret")
	os.WriteFile(file, []byte(`{"listen":"127.0.0.1:1","cpus":3,"session_ttl":"2m","webhook_secret_file":"`+secret+`"}`), 0o600)
	os.WriteFile(secret, []byte("hush\n"), 0o600)
	c, err := Load(file, env("HEARTH_LISTEN", "127.0.0.1:2"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "127.0.0.1:2" || c.CPUs != 3 || time.Duration(c.SessionTTL) != 2*time.Minute || c.WebhookSecret != "hush" ||
		c.MemoryMiB != Default().MemoryMiB {
		t.Errorf("got %+v", c)
	}
	c, err = Load("", env("HEARTH_REPOSITORIES", "acme/app, octo/*", "HEARTH_SECRETS_FILE", "/x"))
	if _, ok := c.Policy("octo/x"); err != nil || !ok || len(c.Repositories) != 2 || c.SecretsFile != "/x" {
		t.Errorf("%+v, %v", c, err)
	}
	os.WriteFile(file, []byte(`{"repositories":["acme/*"]}`), 0o600)
	if c, err := Load(file, env()); err != nil || len(c.Repositories) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	os.WriteFile(file, []byte(`{"repositories":{"acme/*":{"netwrk":"none"}}}`), 0o600)
	if _, err := Load(file, env()); err == nil || !strings.Contains(err.Error(), "netwrk") {
		t.Errorf("an unknown key of a repository must be named: %v", err)
	}
	os.WriteFile(file, []byte(`{"lisen":"x"}`), 0o600)
	if _, err := Load(file, env()); err == nil || !strings.Contains(err.Error(), "lisen") {
		t.Errorf("an unknown key must be named: %v", err)
	}
	os.WriteFile(file, []byte(`{"session_ttl":"169h"}`), 0o600)
	if c, err = Load(file, env()); err != nil {
		t.Error(err)
	}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "session_ttl must be positive, and at most 168h") {
		t.Errorf("a life that no session may have: %v", err)
	}
	if _, err := Load("", env("HEARTH_CPUS", "two")); err == nil {
		t.Error("HEARTH_CPUS=two was accepted")
	}
}

func TestDirs(t *testing.T) {
	d, err := FindDirs(env("HEARTH_HOME", "/x"))
	if err != nil || d.Cache != "/x/cache" || d.Run != "/x/run" {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := FindDirs(env()); err == nil {
		t.Error("no HOME was accepted")
	}
	home := t.TempDir()
	d, _ = FindDirs(env("HEARTH_HOME", home))
	if err := d.Make(); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(d.Run); info.Mode().Perm() != 0o700 {
		t.Errorf("run directory is %v", info.Mode())
	}
}

func TestSharedDirectory(t *testing.T) {
	d, err := FindDirs(env("HEARTH_HOME", "/h", "HEARTH_SHARED", "/s/../s"))
	if err != nil || d.Logs() != "/s/logs" || d.Results() != "/s/results" || d.OIDC() != "/s/oidc" ||
		d.Passes() != "/s/passes.json" || d.Spool() != "/h/state/spool" {
		t.Errorf("%+v %v", d, err)
	}
	if _, err := FindDirs(env("HEARTH_HOME", "/h", "HEARTH_SHARED", "s")); err == nil {
		t.Error("a relative path was taken")
	}
}
