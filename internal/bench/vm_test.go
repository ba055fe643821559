package bench

import (
	"os"
	"testing"
	"time"
)

func TestOfAProcess(t *testing.T) {
	kb, err := privateKB(os.Getpid())
	if err != nil || kb < 100 || kb > 10<<20 {
		t.Errorf("private memory of this process: %d kB, %v", kb, err)
	}
	before, ok := cpuSeconds(os.Getpid())
	if !ok {
		t.Fatal("no CPU time of this process")
	}
	for begin := time.Now(); ; {
		if now, _ := cpuSeconds(os.Getpid()); now > before {
			break // a tick of work has been counted
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatal("CPU time stands still")
		}
	}
	if _, err := privateKB(-1); err == nil {
		t.Error("memory of no process")
	}
}
