package engine

import (
	"encoding/base64"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/guest"
)

// persist lets git in a checked-out repository use the job's token against the
// server, as actions/checkout does unless it is told not to: steps after it fetch and
// push. The token is in a file below RUNNER_TEMP that the repository's config
// includes, so that whoever packs the directory up does not take it along; it goes
// with the machine.
func (x *execution) persist(dir, token string) error {
	if token == "" {
		return nil
	}
	file, err := x.credentials(token)
	if err != nil {
		return err
	}
	// The file is elsewhere in containers; git takes no heed of one that is not there.
	argv := []string{"/bin/sh", "-c", `for f; do printf '[include]\n\tpath = %s\n' "$f"; done >>"$(git rev-parse --git-path config)"`, "sh", file}
	for _, m := range []mapping{x.r.layout.jobMounts(), x.r.layout.actionMounts()} {
		argv = append(argv, m.inside(file))
	}
	exit, err := x.r.job.Guest.Exec(x.ctx, guest.Cmd{Dir: dir, Argv: argv})
	if err == nil && !exit.OK() {
		err = errors.New("the repository's config cannot be written")
	}
	return err
}

// credentials writes a config for git with which it may do on the run's server what a
// token may.
func (x *execution) credentials(token string) (file string, err error) {
	r := x.r
	basic := base64.StdEncoding.EncodeToString([]byte("x-access-token:" + token))
	for _, secret := range []string{token, basic} {
		if err := r.hide(secret); err != nil {
			return "", fmt.Errorf("mask the token: %w", err)
		}
	}
	server := r.server()
	if strings.ContainsAny(server, "\"\\\n\r]") {
		return "", fmt.Errorf("the server's address %q is none", server)
	}
	file = path.Join(r.layout.Temp, "git-credentials-"+ci.NewID()+".config")
	config := fmt.Sprintf("[http \"%s/\"]\n\textraheader = AUTHORIZATION: basic %s\n", server, basic)
	return file, r.job.Guest.WriteFile(x.ctx, file, []byte(config), 0o600, "")
}
