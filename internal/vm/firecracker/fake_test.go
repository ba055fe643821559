package firecracker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/vmm"
)

// fake is a program that stands in Firecracker's place: it answers as told and
// writes down what it was asked. It is this test binary, started by a script.
type fake struct {
	Version string // as --version and the API say it; "1.12.1" if empty
	Refuse  string // path of the request to refuse
	Message string // what it says then, as it is sent
	More    int    // this many bytes follow
	Die     string // path of the request to die at
	Hang    string // path of the request never to answer
	Exit    int    // its exit code, right after InstanceStart, if not 0
	Panic   bool   // print what a kernel prints that panics, and exit well
	Power   bool   // exit well after InstanceStart
	Say     string // on the console, before that
	Mute    bool   // never make the API socket
	Log     string // file for the requests
}

// seen is one request.
type seen struct {
	Method, Path string
	Body         json.RawMessage `json:",omitempty"`
}

const fakeVariable = "HEARTH_FAKE_FIRECRACKER"

func TestMain(m *testing.M) {
	if s := os.Getenv(fakeVariable); s != "" {
		var f fake
		if err := json.Unmarshal([]byte(s), &f); err != nil {
			panic(err)
		}
		f.main(os.Args[1:])
	}
	if s := os.Getenv(ownerVariable); s != "" {
		ownMachine(s)
	}
	os.Exit(m.Run())
}

func (f *fake) main(args []string) {
	if args[0] == "--version" {
		fmt.Println("Firecracker v" + f.Version)
		os.Exit(0)
	}
	flags := map[string]string{}
	for i := 0; i+1 < len(args); i += 2 {
		flags[args[i]] = args[i+1]
	}
	logFile, err := os.OpenFile(flags["--log-path"], os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(logFile, "a line of the fake's log")
	if f.Mute {
		for { // not select{}: without other goroutines Go calls that a deadlock
			time.Sleep(time.Hour)
		}
	}
	// Where nobody looks there is none.
	record, _ := os.OpenFile(f.Log, os.O_APPEND|os.O_WRONLY, 0)
	var mu sync.Mutex
	memory := int64(64)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		line, _ := json.Marshal(seen{r.Method, r.URL.Path, append([]byte(nil), body...)})
		if len(body) == 0 {
			line, _ = json.Marshal(seen{r.Method, r.URL.Path, nil})
		}
		record.Write(append(line, '\n'))
		switch r.URL.Path {
		case f.Refuse:
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, f.Message+strings.Repeat("x", f.More))
			return
		case f.Die:
			fmt.Fprintln(logFile, "thread 'main' panicked at a place")
			os.Exit(1)
		case f.Hang:
			select {}
		}
		var in struct {
			UDSPath      string `json:"uds_path"`
			Mem          int64  `json:"mem_size_mib"`
			MemFilePath  string `json:"mem_file_path"`
			SnapshotPath string `json:"snapshot_path"`
			ActionType   string `json:"action_type"`
		}
		json.Unmarshal(body, &in)
		switch r.URL.Path {
		case "/version":
			json.NewEncoder(w).Encode(apiVersion{f.Version})
			return
		case "/machine-config":
			memory = in.Mem
		case "/vsock":
			go serveVsock(in.UDSPath)
		case "/snapshot/load":
			go serveVsock("vsock.sock")
		case "/snapshot/create":
			os.WriteFile(in.SnapshotPath, []byte("state"), 0o600)
			if m, err := os.OpenFile(in.MemFilePath, os.O_CREATE|os.O_RDWR, 0o600); err == nil {
				m.Truncate(memory << 20)
				m.Close()
			}
		case "/actions":
			fmt.Println("the guest's first words")
			fmt.Println(f.Say)
			w.WriteHeader(http.StatusNoContent)
			if f.Panic {
				fmt.Println("Kernel panic - not syncing: a reason")
			}
			if f.Exit != 0 || f.Panic || f.Power {
				time.AfterFunc(20*time.Millisecond, func() { os.Exit(f.Exit) })
			}
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	l, err := net.Listen("unix", flags["--api-sock"])
	if err != nil {
		panic(err)
	}
	panic(http.Serve(l, h))
}

// serveVsock answers as Firecracker does, then echoes.
func serveVsock(path string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		panic(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			defer c.Close()
			b := make([]byte, len("CONNECT 1024\n"))
			if _, err := io.ReadFull(c, b); err != nil || string(b) != "CONNECT 1024\n" {
				return
			}
			io.WriteString(c, "OK 1073741824\n")
			io.Copy(c, c)
		}()
	}
}

// driver returns a driver for the fake.
func (f *fake) driver(t *testing.T) *Driver {
	t.Helper()
	if f.Version == "" {
		f.Version = "1.12.1"
	}
	if f.Log == "" {
		f.Log = filepath.Join(t.TempDir(), "requests")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "firecracker")
	text := "#!/bin/sh\nexport " + fakeVariable + "='" + strings.ReplaceAll(string(b), "'", `'\''`) + "'\nexec '" + self + "' \"$@\"\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	d := New(Config{Binary: script, Jailer: "none"})
	d.also, d.open = []string{self}, map[string]string{f.Log: f.Log}
	return d
}

// requests returns what the fake was asked.
func (f *fake) requests(t *testing.T) []seen {
	t.Helper()
	b, err := os.ReadFile(f.Log)
	if err != nil {
		t.Fatal(err)
	}
	var all []seen
	for line := range strings.Lines(string(b)) {
		var s seen
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

// spec is a machine of the fake's.
func spec(t *testing.T, id string) vm.Spec {
	t.Helper()
	dir := filepath.Join(t.TempDir(), id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, probeProgram(), 0o600); err != nil {
		t.Fatal(err)
	}
	return vm.Spec{ID: id, Dir: dir, Kernel: kernel, Initrd: kernel, CPUs: 2, MemoryMiB: 64, MAC: vm.DefaultMAC, Cmdline: "quiet"}
}

// closing closes m when the test ends, and makes sure that nothing is left.
func closing(t *testing.T, m *machine) {
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if left := processes(m.Spec.ID); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		if _, err := os.Stat(m.Spec.Dir); err == nil {
			t.Error("its directory is left")
		}
	})
}

// processes returns the command lines that carry a machine's name.
func processes(id string) []string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if strings.Contains(string(b), "\x00hearth-"+id+"\x00") {
			found = append(found, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}

// sleepProgram is a guest that does nothing, for ever.
func sleepProgram() []byte { return vmm.Program(0x1000000, []byte{0xf4, 0xeb, 0xfd}) } // hlt, again
