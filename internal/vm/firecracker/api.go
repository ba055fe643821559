package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/vm"
)

// maxAnswer bounds what is read of one answer. Those we ask for have at most a
// few hundred bytes, and a Firecracker that its guest has taken over may send
// anything.
const maxAnswer = 64 << 10

// Fault is Firecracker's refusal of a request.
type Fault struct {
	Method, Path string
	Status       int    // of HTTP
	Message      string // Firecracker's fault_message, or what else it answered
}

func (f *Fault) Error() string {
	return fmt.Sprintf("firecracker: %s %s: %s (HTTP %d)", f.Method, f.Path, f.Message, f.Status)
}

// client speaks to the API socket of one Firecracker.
type client struct {
	http *http.Client
}

func newClient(socket string) *client {
	return &client{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return vm.DialUnix(ctx, socket) },
		// Requests come one at a time, and Firecracker serves few connections.
		MaxConnsPerHost:        1,
		MaxResponseHeaderBytes: 16 << 10,
		DisableCompression:     true,
	}}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// call sends one request, with body as JSON unless it is nil, and decodes the
// answer into out unless that is nil. A refusal is a [*Fault].
func (c *client) call(ctx context.Context, method, path string, body, out any) error {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, r)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if errors.As(err, &u) {
			err = u.Err // the rest is what we say
		}
		return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
	}
	if len(b) > maxAnswer {
		return fmt.Errorf("firecracker: %s %s: the answer is longer than %d bytes", method, path, maxAnswer)
	}
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return &Fault{Method: method, Path: path, Status: res.StatusCode, Message: faultMessage(b)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("firecracker: %s %s: unreadable answer: %w", method, path, err)
	}
	return nil
}

// faultMessage takes the reason out of an answer that is an error.
func faultMessage(b []byte) string {
	var f struct {
		Message string `json:"fault_message"`
	}
	s := string(b)
	if json.Unmarshal(b, &f) == nil && f.Message != "" {
		s = f.Message
	}
	s = strings.ReplaceAll(vm.LastLines(s, 8), "\n", "; ")
	if s == "" {
		return "no reason given"
	}
	return s
}

// errNotYet is for as long as the API does not answer.
var errNotYet = errors.New("its API does not answer yet")

// ready waits until the API answers, and returns the version it says.
func (c *client) ready(ctx context.Context, ended <-chan struct{}) (version, error) {
	pause := time.Millisecond
	for {
		var v apiVersion
		err := c.call(ctx, http.MethodGet, "/version", nil, &v)
		if err == nil {
			return parseVersion(v.FirecrackerVersion)
		}
		var f *Fault
		if errors.As(err, &f) {
			return version{}, err
		}
		select {
		case <-ended:
			return version{}, errNotYet
		case <-ctx.Done():
			return version{}, fmt.Errorf("%w: %w", context.Cause(ctx), errNotYet)
		case <-time.After(pause):
		}
		pause = min(2*pause, 20*time.Millisecond)
	}
}

// What follows is what we send, named and shaped as in the published
// description of the API; api_test.go compares the two.

type apiVersion struct {
	FirecrackerVersion string `json:"firecracker_version"`
}

type apiMachineConfig struct {
	VCPUCount       int  `json:"vcpu_count"`
	MemSizeMiB      int  `json:"mem_size_mib"`
	SMT             bool `json:"smt"`
	TrackDirtyPages bool `json:"track_dirty_pages"`
}

type apiBootSource struct {
	KernelImagePath string `json:"kernel_image_path"`
	InitrdPath      string `json:"initrd_path,omitempty"`
	BootArgs        string `json:"boot_args"`
}

type apiDrive struct {
	DriveID      string `json:"drive_id"`
	PathOnHost   string `json:"path_on_host"`
	IsRootDevice bool   `json:"is_root_device"`
	IsReadOnly   bool   `json:"is_read_only"`
	CacheType    string `json:"cache_type"`
	IOEngine     string `json:"io_engine"`
}

type apiNetworkInterface struct {
	IfaceID     string `json:"iface_id"`
	HostDevName string `json:"host_dev_name"`
	GuestMAC    string `json:"guest_mac"`
}

type apiVsock struct {
	GuestCID uint32 `json:"guest_cid"`
	UDSPath  string `json:"uds_path"`
}

type apiEntropy struct{}

type apiAction struct {
	ActionType string `json:"action_type"`
}

type apiVM struct {
	State string `json:"state"`
}

type apiSnapshotCreate struct {
	SnapshotType string `json:"snapshot_type"`
	SnapshotPath string `json:"snapshot_path"`
	MemFilePath  string `json:"mem_file_path"`
}

type apiMemoryBackend struct {
	BackendType string `json:"backend_type"`
	BackendPath string `json:"backend_path"`
}

type apiNetworkOverride struct {
	IfaceID     string `json:"iface_id"`
	HostDevName string `json:"host_dev_name"`
}

type apiVsockOverride struct {
	UDSPath string `json:"uds_path"`
}

type apiSnapshotLoad struct {
	SnapshotPath     string               `json:"snapshot_path"`
	MemBackend       apiMemoryBackend     `json:"mem_backend"`
	ResumeVM         bool                 `json:"resume_vm"`
	NetworkOverrides []apiNetworkOverride `json:"network_overrides,omitempty"` // since 1.12
	VsockOverride    *apiVsockOverride    `json:"vsock_override,omitempty"`    // since 1.16
}
