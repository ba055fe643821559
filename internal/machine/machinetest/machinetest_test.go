package machinetest

import (
	"errors"
	"testing"

	"github.com/hearth-ci/hearth/internal/machine"
)

func TestHost(t *testing.T) {
	Run(t, Suite{
		New:  func(_ *testing.T, most int) machine.Host { return &Host{Most: most} },
		Kill: func(m machine.Machine) { m.(*Machine).Lose(errors.New("killed\nby a test")) },
	})
}
