package firecracker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/vmm"
)

// TestLife does everything that a driver does with machines once, with the
// fake, and looks at the requests.
func TestLife(t *testing.T) {
	for _, v := range []string{"1.12.1", "1.16.0"} {
		t.Run(v, func(t *testing.T) {
			f := &fake{Version: v}
			life(t, f)
			var got []string
			for _, r := range f.requests(t) {
				got = append(got, r.Method+" "+r.Path)
			}
			wired := []string{"PUT /network-interfaces/eth0"}
			if os.Geteuid() != 0 {
				wired = nil
			}
			want := slices.Concat(
				[]string{"GET /version", "PUT /machine-config", "PUT /boot-source", "PUT /drives/disk0", "PUT /drives/disk1"}, wired,
				[]string{"PUT /vsock", "PUT /entropy", "PUT /actions",
					"PATCH /vm", "PATCH /vm", // pause, resume
					"PATCH /vm", "PUT /snapshot/create", "PATCH /vm",
					"GET /version", "PUT /snapshot/load", "PATCH /vm"})
			if !slices.Equal(got, want) {
				t.Errorf("requests:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			load := string(f.requests(t)[len(got)-2].Body)
			if has := strings.Contains(load, "vsock_override"); has != (v == "1.16.0") {
				t.Errorf("%s is told of vsock_override: %t", v, has)
			}
			for _, r := range f.requests(t) {
				if i := strings.Index(string(r.Body), "/tmp/"); i >= 0 {
					t.Errorf("%s is given a path that no clone would have: %s", r.Path, r.Body)
				}
			}
		})
	}
}

// life starts, pauses, snapshots and restores.
func life(t *testing.T, f *fake) {
	ctx := t.Context()
	d := f.driver(t)
	s := spec(t, "life")
	scratch, base := filepath.Join(s.Dir, "scratch.img"), filepath.Join(t.TempDir(), "base")
	for _, p := range []string{scratch, base} {
		if err := os.WriteFile(p, []byte(filepath.Base(p)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.Disks = []vm.Disk{{ID: "base", Path: base, ReadOnly: true}, {ID: "my-scratch", Path: scratch}}
	s.Cmdline = "quiet hearth.base=base hearth.scratch=my-scratch hearth.host=base"
	network := func(s *vm.Spec) {
		if os.Geteuid() != 0 {
			t.Log("not root: the machines have no network")
			return
		}
		s.Net = filepath.Join(s.Dir, "net.sock")
		l, err := vm.ListenUnix(s.Net)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	network(&s)
	m, err := d.boot(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	closing(t, m)
	if len(processes("life")) != 1 {
		t.Errorf("processes: %q", processes("life"))
	}
	c := echo(t, m)
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := m.Snapshot(ctx, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the stream outlives a snapshot")
	}
	if err := d.Verify(ctx, dir); err != nil {
		t.Error(err)
	}
	clone := spec(t, "clone")
	clone.Kernel, clone.Initrd, clone.Cmdline, clone.CPUs, clone.MemoryMiB, clone.Disks = "", "", "", 0, 0, nil
	network(&clone)
	restored, err := d.Restore(ctx, dir, clone)
	if err != nil {
		t.Fatal(err)
	}
	closing(t, restored.(*machine))
	echo(t, restored.(*machine))
	// What those who talk to the guest say of a failure has the end of the log in it.
	if err := vm.Explain(m, "connect", errors.New("no answer")); !strings.Contains(err.Error(), "| a line of the fake's log") {
		t.Errorf("an error of the agent's: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(clone.Dir, "disk-my-scratch")); err != nil || string(b) != "scratch.img" {
		t.Errorf("the clone's disk: %q, %v", b, err)
	}
}

// echo connects, and sees that the stream is clean from its first byte.
func echo(t *testing.T, m *machine) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		c, err := m.Dial(ctx)
		if err != nil && ctx.Err() == nil {
			continue // the fake's socket may take a moment
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "hello\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "hello\n" {
			t.Fatalf("%q, %v", line, err)
		}
		return c
	}
}

// TestFailures: what goes wrong is said in Firecracker's words, with its log,
// and nothing is left of the machine.
func TestFailures(t *testing.T) {
	fault := `{"fault_message":"no\u0007 good: the\nreason"}`
	for name, c := range map[string]struct {
		fake fake
		want []string
	}{
		"refusal":              {fake{Refuse: "/boot-source", Message: fault}, []string{"machine fail", "PUT /boot-source", "no good: the; reason", "HTTP 400"}},
		"refusal of the start": {fake{Refuse: "/actions", Message: fault}, []string{"PUT /actions", "no good", "a line of the fake's log"}},
		"refusal without JSON": {fake{Refuse: "/vsock", Message: "<html>"}, []string{"<html>"}},
		"refusal of nothing":   {fake{Refuse: "/vsock"}, []string{"no reason given"}},
		"endless refusal":      {fake{Refuse: "/vsock", More: 2 * maxAnswer}, []string{"longer than"}},
		"death in the start":   {fake{Die: "/actions"}, []string{"firecracker ended: exit status 1", "panicked at a place"}},
		"death at once":        {fake{Die: "/version"}, []string{"firecracker ended: exit status 1", "panicked at a place"}},
		"silence":              {fake{Hang: "/actions"}, []string{"patience is over"}},
		"no API":               {fake{Mute: true}, []string{"patience is over", "does not answer yet"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := c.fake.driver(t)
			s := spec(t, "fail")
			limit := 20 * time.Second
			if c.fake.Mute || c.fake.Hang != "" {
				limit = 500 * time.Millisecond
			}
			ctx, cancel := context.WithTimeoutCause(t.Context(), limit, errors.New("patience is over"))
			defer cancel()
			m, err := d.boot(ctx, s)
			if err == nil {
				m.Close(context.Background())
				t.Fatal("it started")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error does not say %q:\n%v", w, err)
				}
			}
			if left := processes("fail"); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// TestEnds: how a machine that ran has ended.
func TestEnds(t *testing.T) {
	for name, c := range map[string]struct {
		fake fake
		want string // "" is a good end
	}{
		"power off": {fake{Power: true}, ""},
		"panic":     {fake{Panic: true}, "the guest's kernel panicked"},
		"fatal":     {fake{Power: true, Say: "[   10.1] hearth-guest: FATAL: no root"}, "the guest could not go on"},
		"seccomp":   {fake{Exit: 148}, "system call that its seccomp filter forbids"},
		"failure":   {fake{Exit: 1}, "firecracker ended: exit status 1"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := c.fake.driver(t).boot(t.Context(), spec(t, "ends"))
			if err != nil {
				t.Fatal(err)
			}
			closing(t, m)
			err = m.Wait()
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "first words")):
				t.Errorf("%v; want %q and the console", err, c.want)
			}
			if _, err := m.Dial(t.Context()); err == nil {
				t.Error("Dial of a machine that has ended succeeds")
			}
			if err := m.Pause(t.Context()); err == nil {
				t.Error("Pause of a machine that has ended succeeds")
			}
		})
	}
}

// TestSnapshotFailures: a snapshot that fails leaves its machine running, one
// that cannot be loaded is an [vm.ErrSnapshot].
func TestSnapshotFailures(t *testing.T) {
	ctx := t.Context()
	good := &fake{}
	d := good.driver(t)
	m, err := d.boot(ctx, spec(t, "shot"))
	if err != nil {
		t.Fatal(err)
	}
	closing(t, m)
	dir := t.TempDir()
	if err := m.Snapshot(ctx, dir); err != nil {
		t.Fatal(err)
	}
	restore := func(d *Driver, dir string) error {
		s := spec(t, "again")
		s.Kernel, s.Initrd, s.Cmdline, s.CPUs, s.MemoryMiB = "", "", "", 0, 0
		m, err := d.Restore(ctx, dir, s)
		if err == nil {
			m.Close(context.Background())
		}
		if left := processes("again"); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		return err
	}
	t.Run("refused", func(t *testing.T) {
		bad := &fake{Refuse: "/snapshot/load", Message: `{"fault_message":"Load snapshot error: invalid magic"}`}
		err := restore(bad.driver(t), dir)
		if !errors.Is(err, vm.ErrSnapshot) || !strings.Contains(err.Error(), "invalid magic") {
			t.Error(err)
		}
	})
	t.Run("death", func(t *testing.T) {
		bad := &fake{Die: "/snapshot/load"}
		err := restore(bad.driver(t), dir)
		if !errors.Is(err, vm.ErrSnapshot) || !strings.Contains(err.Error(), "firecracker ended: exit status 1") ||
			!strings.Contains(err.Error(), "panicked at a place") {
			t.Error(err)
		}
	})
	t.Run("other version", func(t *testing.T) {
		other := &fake{Version: "1.13.0"}
		err := restore(other.driver(t), dir)
		if !errors.Is(err, vm.ErrSnapshot) || !strings.Contains(err.Error(), "firecracker-1.12.1") || !strings.Contains(err.Error(), "firecracker-1.13.0") {
			t.Error(err)
		}
		if len(processes("again")) > 0 {
			t.Error("it was tried all the same")
		}
	})
	t.Run("other machine", func(t *testing.T) {
		moved := t.TempDir()
		if err := os.CopyFS(moved, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(moved, vmm.ManifestName)
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var s vmm.Manifest
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
		s.Fingerprint = "firecracker-1.12.1-Another_CPU-linux-6.1.0-layout1"
		if err := s.Write(ctx, moved); err != nil {
			t.Fatal(err)
		}
		if err := restore(d, moved); !errors.Is(err, vm.ErrSnapshot) || !strings.Contains(err.Error(), "Another_CPU") {
			t.Error(err)
		}
	})
	t.Run("refused to make", func(t *testing.T) {
		bad := &fake{Refuse: "/snapshot/create", Message: `{"fault_message":"disk full"}`}
		m, err := bad.driver(t).boot(ctx, spec(t, "full"))
		if err != nil {
			t.Fatal(err)
		}
		closing(t, m)
		dir := t.TempDir()
		if err := m.Snapshot(ctx, dir); err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(dir, vmm.ManifestName)); !errors.Is(err, fs.ErrNotExist) {
			t.Error("a failed snapshot looks whole")
		}
		all := bad.requests(t)
		if last := all[len(all)-1]; string(last.Body) != `{"state":"Resumed"}` {
			t.Errorf("the machine was left paused: %s", last.Body)
		}
		echo(t, m)
	})
}

// TestDig: zeros become holes, everything else stays where it is.
func TestDig(t *testing.T) {
	name := filepath.Join(t.TempDir(), "memory")
	b := make([]byte, 3<<20)
	copy(b[200<<10:], "something")
	b[len(b)-1] = 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	used := func() int64 {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Sys().(*syscall.Stat_t).Blocks * 512
	}
	before := used()
	if err := dig(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if after := used(); after > before/2 {
		t.Errorf("%d bytes in use, %d before", after, before)
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, b) {
		t.Errorf("the file has changed (%v)", err)
	}
}

func TestVersions(t *testing.T) {
	for text, want := range map[string]string{
		"Firecracker v1.12.1\n\n2026-11-23T22:15:06 [anonymous-instance:main] exiting": "1.12.1",
		"Firecracker v1.17.0-dev": "1.17.0",
		"Firecracker":             "no version",
		"":                        "no version",
	} {
		v, err := parseVersion(text)
		if got := v.String(); err == nil && got != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v", text, v, err)
		}
	}
	old := &fake{Version: "1.11.0"}
	if _, err := old.driver(t).Version(t.Context()); err == nil || !strings.Contains(err.Error(), "at least 1.12") {
		t.Error(err)
	}
	t.Setenv("HEARTH_FIRECRACKER", "/nowhere/firecracker")
	if _, err := New(Config{}).Version(t.Context()); err == nil || !strings.Contains(err.Error(), "HEARTH_FIRECRACKER") {
		t.Error(err)
	}
	t.Setenv("HEARTH_FIRECRACKER", "")
	t.Setenv("PATH", t.TempDir())
	if err := New(Config{}).Probe(t.Context()); !errors.Is(err, ErrNotInstalled) {
		t.Error(err)
	}
	cache := t.TempDir()
	fetched := filepath.Join(cache, "firecracker", FetchedVersion)
	if err := os.MkdirAll(fetched, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(fetched, "firecracker"), []byte("#!/bin/sh\necho Firecracker v"+FetchedVersion+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if v, err := New(Config{CacheDir: cache}).Version(t.Context()); err != nil || v != FetchedVersion {
		t.Error(v, err)
	}
}

func TestBootArgs(t *testing.T) {
	disks := []vm.Disk{{ID: "base"}, {ID: "scratch"}, {ID: "modules"}, {ID: "engine"}}
	const own = " reboot=k panic=-1 pci=off i8042.noaux i8042.nomux i8042.dumbkbd"
	for in, want := range map[string]string{
		"": "console=ttyS0" + own,
		"quiet hearth.base=base hearth.scratch=scratch hearth.tools=tools hearth.host=base": "quiet hearth.base=vda hearth.scratch=vdb hearth.tools=tools hearth.host=base console=ttyS0" + own,
		"hearth.modules=modules hearth.engine=engine":                                       "hearth.modules=vdc hearth.engine=vdd console=ttyS0" + own,
		"console=hvc0 panic=5": "console=hvc0 panic=5 reboot=k pci=off i8042.noaux i8042.nomux i8042.dumbkbd",
	} {
		if got := bootArgs(in, disks); got != want {
			t.Errorf("%q:\n%s\nwant\n%s", in, got, want)
		}
	}
	for n, want := range map[int]string{0: "vda", 25: "vdz", 26: "vdaa", 701: "vdzz", 702: "vdaaa"} {
		if got := deviceName(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestRefusedSpecs(t *testing.T) {
	d := (&fake{}).driver(t)
	for name, c := range map[string]struct {
		change func(*vm.Spec)
		want   string
	}{
		"qcow2":     {func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "a", Path: s.Kernel, Format: "qcow2"}} }, "raw images only"},
		"many CPUs": {func(s *vm.Spec) { s.CPUs = 33 }, "32 at most"},
		"no kernel": {func(s *vm.Spec) { s.Kernel = "/nowhere/vmlinux" }, "/nowhere/vmlinux"},
	} {
		s := spec(t, "refused")
		c.change(&s)
		if m, err := d.Start(t.Context(), s); err == nil {
			m.Close(context.Background())
			t.Errorf("%s: it started", name)
		} else if !strings.Contains(err.Error(), c.want) && !errors.Is(err, ErrNoKVM) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// ownerVariable names a directory to start a machine in and wait.
const ownerVariable = "HEARTH_OWN_MACHINE"

// ownMachine is the process that TestOwnerDies kills.
func ownMachine(arg string) {
	binary, dir, _ := strings.Cut(arg, ":")
	d := New(Config{Binary: binary})
	if self, err := os.Executable(); err == nil {
		d.also = []string{self}
	}
	m, err := d.boot(context.Background(), vm.Spec{ID: filepath.Base(dir), Dir: dir, Kernel: filepath.Join(filepath.Dir(dir), "kernel"), CPUs: 1,
		MemoryMiB: 64, MAC: vm.DefaultMAC})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("started", m.Pid())
	m.Wait()
	os.Exit(1)
}

// ownerDies kills the process that owns a machine: nothing of it runs any more,
// and Reap removes what it has left.
func ownerDies(t *testing.T, binary, id string) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	dir := filepath.Join(home, "machines", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "machines", "kernel"), sleepProgram(), 0o600); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := os.StartProcess(self, []string{self}, &os.ProcAttr{Env: append(os.Environ(), ownerVariable+"="+binary+":"+dir),
		Files: []*os.File{nil, w, os.Stderr}})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "started") {
		t.Fatalf("%q, %v", line, err)
	}
	if len(processes(id)) == 0 {
		t.Fatal("there is no process to die")
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.Wait()
	for deadline := time.Now().Add(20 * time.Second); len(processes(id)) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("its owner's death leaves %q", processes(id))
		}
	}
	reaped, err := vm.Reap(t.Context(), filepath.Join(home, "machines"), time.Hour)
	if err != nil || len(reaped) != 1 || reaped[0].ID != id {
		t.Errorf("%+v, %v", reaped, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("its directory is left")
	}
}

func TestOwnerDies(t *testing.T) {
	d := (&fake{}).driver(t)
	binary, err := d.Binary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ownerDies(t, binary, fmt.Sprintf("orphan-%d", os.Getpid()))
}

// pipe is one side of a connection in memory.
type pipe struct {
	io.Reader
	io.Writer
}

func FuzzHandshake(f *testing.F) {
	for _, s := range []string{"OK 1073741824\nagent", "", "OK\n", "OK 99999999999\n", "NO\n", "OK 1", strings.Repeat("O", 100), "OK 1\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		err := handshake(pipe{r, io.Discard}, 1024)
		read := len(in) - r.Len()
		if read > 40 {
			t.Errorf("%d bytes read", read)
		}
		if err == nil && (!bytes.HasPrefix(in, []byte("OK ")) || in[read-1] != '\n') {
			t.Errorf("%q passes", in)
		}
	})
}

func FuzzFaultMessage(f *testing.F) {
	for _, s := range []string{`{"fault_message":"x"}`, `{"fault_message":1}`, "", "<html>", "{\"fault_message\":\"\x1b[31m\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if s := faultMessage(in); s == "" || len(s) > 8*310 || strings.ContainsAny(s, "\n\x1b\x00") {
			t.Errorf("%q", s)
		}
	})
}
