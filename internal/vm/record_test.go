package vm

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func machineDir(t *testing.T, root, id string, r *Record) string {
	t.Helper()
	dir := filepath.Join(root, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if r == nil {
		return dir
	}
	if err := WriteRecord(dir, "test", Spec{ID: id, DeleteBy: r.DeleteBy}, r.VMM.Pid); err != nil {
		t.Fatal(err)
	}
	if r.Owner != (Proc{}) { // somebody else's
		b, err := os.ReadFile(filepath.Join(dir, RecordName))
		if err != nil {
			t.Fatal(err)
		}
		me, err := FindProc(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		swap(t, dir, b, me, r.Owner)
	}
	return dir
}

func TestReap(t *testing.T) {
	root := t.TempDir()
	// A process that stands for a VMM. It is our child, so that it stays a
	// zombie until we wait for it: Alive must see through that.
	vmm := exec.Command("sleep", "1000")
	if err := vmm.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vmm.Process.Kill(); vmm.Wait() })
	me, err := FindProc(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	dead := me
	dead.Start++ // the same id, but another process: ours came later
	rebooted := me
	rebooted.Boot = "before"

	want := map[string]bool{"orphan": true, "rebooted": true, "expired": true, "old-blank": true, "garbage": true}
	machineDir(t, root, "orphan", &Record{Owner: dead, VMM: Proc{Pid: vmm.Process.Pid}})
	machineDir(t, root, "rebooted", &Record{Owner: rebooted})
	machineDir(t, root, "expired", &Record{DeleteBy: time.Now().Add(-time.Second)})
	machineDir(t, root, "mine", &Record{DeleteBy: time.Now().Add(time.Hour)})
	machineDir(t, root, "mine-for-ever", &Record{})
	half := fmt.Sprintf(".new-%d-%d-m1", dead.Pid, dead.Start)
	want[half] = true
	machineDir(t, root, half, nil)
	machineDir(t, root, fmt.Sprintf(".new-%d-%d-m2", me.Pid, me.Start), nil)
	old := machineDir(t, root, "old-blank", nil)
	garbage := machineDir(t, root, "garbage", nil)
	if err := os.WriteFile(filepath.Join(garbage, RecordName), []byte(`{"id": 7`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{old, garbage} {
		past := time.Now().Add(-2 * time.Hour)
		if err := os.Chtimes(d, past, past); err != nil {
			t.Fatal(err)
		}
	}
	machineDir(t, root, "new-blank", nil)
	if err := os.WriteFile(filepath.Join(root, "a-file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	reaped, err := Reap(t.Context(), root, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reaped {
		if !want[r.ID] {
			t.Errorf("reaped %s: %s", r.ID, r.Reason)
		}
		delete(want, r.ID)
		if _, err := os.Stat(r.Dir); err == nil {
			t.Errorf("%s is still there", r.Dir)
		}
		if r.ID == "orphan" && r.Killed != vmm.Process.Pid {
			t.Errorf("killed %d, want %d", r.Killed, vmm.Process.Pid)
		}
	}
	for id := range want {
		t.Errorf("%s was not reaped", id)
	}
	if p, err := FindProc(vmm.Process.Pid); err == nil {
		t.Errorf("the VMM still runs: %+v", p)
	}
	left, _ := os.ReadDir(root)
	if len(left) != 5 {
		t.Errorf("%d entries are left, want 5", len(left))
	}
	if r, err := Reap(t.Context(), filepath.Join(root, "absent"), 0); err != nil || len(r) != 0 {
		t.Errorf("Reap of nothing: %v, %v", r, err)
	}
}

func TestSpecCheck(t *testing.T) {
	good := Spec{ID: "a-1", Dir: "/d", Kernel: "k", CPUs: 1, MemoryMiB: 64}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Spec){
		"option in the id": func(s *Spec) { s.ID = "-x" },
		"comma in the id":  func(s *Spec) { s.ID = "a,b" },
		"long id":          func(s *Spec) { s.ID = string(make([]byte, 41)) },
		"no kernel":        func(s *Spec) { s.Kernel = "" },
		"mac":              func(s *Spec) { s.MAC = "52:54" },
		"disks alike":      func(s *Spec) { s.Disks = []Disk{{ID: "a", Path: "p"}, {ID: "a", Path: "q"}} },
		"disk, no path":    func(s *Spec) { s.Disks = []Disk{{ID: "a"}} },
	} {
		s := good
		change(&s)
		if s.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// swap replaces the owner in a record.
func swap(t *testing.T, dir string, b []byte, from, to Proc) {
	t.Helper()
	r, err := ReadRecord(dir)
	if err != nil || r.Owner != from {
		t.Fatalf("record %s: %v", b, err)
	}
	r.Owner = to
	out, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, RecordName), out, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestMakeDir(t *testing.T) {
	root := t.TempDir()
	dir, err := MakeDir(root, "m1")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := ReadRecord(dir); err != nil || r.ID != "m1" || !r.Owner.Alive() {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := MakeDir(root, "m1"); err == nil {
		t.Error("a machine's directory was made twice")
	}
	if left, _ := filepath.Glob(filepath.Join(root, ".new-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
