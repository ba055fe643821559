package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// units are the services there are.
var units = []string{"../../packaging/systemd/hearth.service", "../../packaging/systemd/hearth-worker.service"}

// TestAttackService has systemd rate what somebody could do that has taken over
// the server: 10 is everything, and a plain unit for `hearth serve` has 9.6.
func TestAttackService(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("SKIPPED, NOT PASSED: systemd-analyze is not installed: apt-get install systemd")
	}
	for _, unit := range units {
		out, err := exec.Command("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=30", unit).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze: %v (its threshold is 3.0)\n%s", err, out)
		}
		rate := regexp.MustCompile(`Overall exposure level for \S+: (\S+)`).FindSubmatch(out)
		if rate == nil {
			t.Fatalf("no rating in\n%s", out)
		}
		t.Logf("%s: exposure %s", filepath.Base(unit), rate[1])
		// What the rating does not count but the service must not have.
		b, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"User=hearth", "CapabilityBoundingSet=", "NoNewPrivileges=yes", "ProtectSystem=strict", "Delegate=cpu memory pids io"} {
			if !strings.Contains(string(b), "\n"+line+"\n") {
				t.Errorf("%s is gone from %s", line, filepath.Base(unit))
			}
		}
	}
}

// TestUnit lets systemd read the unit, and the drop-in with it.
func TestUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("SKIPPED, NOT PASSED: systemd-analyze is not installed: apt-get install systemd")
	}
	for _, unit := range units {
		b, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		more, err := os.ReadFile(filepath.Join(filepath.Dir(unit), "hearth-root.conf"))
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		// The program's place is the administrator's business.
		there := strings.ReplaceAll(string(b), "/usr/local/bin/hearth", "/bin/true")
		name := filepath.Join(dir, filepath.Base(unit))
		if err := os.MkdirAll(name+".d", 0o755); err != nil {
			t.Fatal(err)
		}
		for path, text := range map[string]string{name: there, filepath.Join(name+".d", "root.conf"): string(more)} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", name).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify: %v\n%s", err, out)
		}
	}
}
