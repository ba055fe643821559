package config

import (
	"fmt"
	"time"
)

// Doors says who may come in, and how much a client may hold. Its settings stand
// beside the others.
type Doors struct {
	// Hosts are names under which this server answers beside the host of url, those
	// of loopback and the address that a connection comes to: NAME or NAME:PORT.
	Hosts []string `json:"hosts"`
	// Connections is how many may be open at once.
	Connections int `json:"connections"`
	// Login is auto or always: whether pages, streams and logs want a login. With
	// auto they do as soon as others than this machine's users may reach them: if
	// listen or url is not loopback, or there is a GitHub App.
	Login string `json:"login"`
	// LoginTTL is how long a login is good for.
	LoginTTL Duration `json:"login_ttl"`
	API      API      `json:"api"`
}

// API is what the bearers of tokens may have of the HTTP API. Zero numbers take
// the default named.
type API struct {
	// Issuers and Audiences (iss, aud) are those whose tokens are taken beside
	// Hearth's own ("hearth", "hearth-api"), signed with the same secret; "" among
	// them takes tokens that name none.
	Issuers   []string `json:"issuers"`
	Audiences []string `json:"audiences"`
	// Network is the most that a machine may reach, as a request writes it: public,
	// none, or allow:HOST,HOST. Requests may ask for less.
	Network string `json:"network"`
	// Learn is advise or off: whether what programs come to is learned from. "" is
	// advise, where the server learns at all.
	Learn string `json:"learn"`
	// What one subject may have at once, and all together: VMs (32, 64), programs
	// under way (64, 256), snapshots (32, 128) and their size on disk (8GiB, 32GiB).
	VMs             int  `json:"vms"`
	AllVMs          int  `json:"all_vms"`
	Executions      int  `json:"executions"`
	AllExecutions   int  `json:"all_executions"`
	Snapshots       int  `json:"snapshots"`
	AllSnapshots    int  `json:"all_snapshots"`
	SnapshotSize    Size `json:"snapshot_size"`
	AllSnapshotSize Size `json:"all_snapshot_size"`
}

func defaultDoors() Doors {
	return Doors{Connections: 1000, Login: "auto", LoginTTL: Duration(24 * time.Hour)}
}

// validate names every problem.
func (d Doors) validate() (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if d.Login != "auto" && d.Login != "always" {
		bad("login %q: want auto or always", d.Login)
	}
	if d.LoginTTL < Duration(time.Minute) || d.LoginTTL > Duration(90*24*time.Hour) {
		bad("login_ttl %v: want 1m to 90d", d.LoginTTL)
	}
	if d.Connections < 16 {
		bad("connections %d: want at least 16", d.Connections)
	}
	a := d.API
	if a.Learn != "" && a.Learn != "advise" && a.Learn != "off" {
		bad("api.learn %q: want advise or off", a.Learn)
	}
	for _, s := range []struct {
		name string
		n    int64
	}{{"vms", int64(a.VMs)}, {"all_vms", int64(a.AllVMs)}, {"executions", int64(a.Executions)}, {"all_executions", int64(a.AllExecutions)},
		{"snapshots", int64(a.Snapshots)},
		{"all_snapshots", int64(a.AllSnapshots)}, {"snapshot_size", int64(a.SnapshotSize)}, {"all_snapshot_size", int64(a.AllSnapshotSize)}} {
		if s.n < 0 {
			bad("api.%s: want a number that is not negative", s.name)
		}
	}
	return errs
}
