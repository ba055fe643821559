package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The example of docs/serve.md is one that the server takes, and means what the
// text around it says.
func TestDocumentedExample(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "serve.md"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```json\n(.*?)```").FindSubmatch(b)
	layout := regexp.MustCompile("(?s)```\n(org/.*?)```").FindSubmatch(b)
	if m == nil || layout == nil {
		t.Fatal("no example, or no layout of the secrets, in docs/serve.md")
	}
	dir := t.TempDir()
	text := strings.ReplaceAll(string(m[1]), "/etc/hearth/", dir+"/")
	for line := range strings.Lines(string(layout[1])) {
		place, _, _ := strings.Cut(line, " ")
		put(t, dir, "secrets/"+strings.TrimSpace(place), "KEY="+strings.TrimSpace(place))
	}
	put(t, dir, "vars/org/acme", "REGION=eu")
	put(t, dir, "webhook-secret", "hush")
	put(t, dir, "jwt-secret", strings.Repeat("x", 32))
	put(t, dir, "hearth.json", text)
	c, err := Load(filepath.Join(dir, "hearth.json"), env())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	deploy, served := c.Policy("Acme/Deploy")
	if !served || deploy.Approval != ApprovalAllForks || deploy.Own.MaxTimeout != 2*time.Hour || deploy.Fork.MaxTimeout != 30*time.Minute ||
		deploy.Own.Network.String() != "allow:*.example.org:443" || deploy.Fork.Network.String() != "none" || deploy.Fork.Machines != 1 || deploy.Own.CPUs != 2 {
		t.Errorf("acme/deploy: %+v", deploy)
	}
	app, served := c.Policy("acme/app")
	if !served || app.Learn != "advise" || deploy.Learn != "off" || app.Approval != ApprovalFirstTime || app.Own.Network.String() != "public" ||
		!strings.HasPrefix(app.Fork.Network.String(), "allow:deb.debian.org") {
		t.Errorf("acme/app: %+v", app)
	}
	if _, served := c.Policy("mallory/app"); served {
		t.Error("mallory/app is served")
	}
	v, err := ReadValues(c.SecretsDir, true)
	if err != nil {
		t.Fatal(err)
	}
	if v.Of("acme/deploy")["KEY"] != "repo/acme/deploy" || v.Of("acme/app")["KEY"] != "org/acme" ||
		v.Environments("acme/deploy")["production"]["KEY"] != "env/acme/deploy/production" ||
		v.Dependabot("acme/deploy")["KEY"] != "dependabot/repo/acme/deploy" || v.Dependabot("acme/app")["KEY"] != "dependabot/org/acme" {
		t.Errorf("%+v", v)
	}
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	name = filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
