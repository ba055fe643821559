// Command init is the smallest /init that shows whether an image boots: it
// loads the modules of the initrd, mounts base and tools if there are disks,
// says what it sees on the console, and powers the machine off.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	began := time.Now()
	_ = os.MkdirAll("/proc", 0o755)
	_ = syscall.Mount("proc", "/proc", "proc", 0, "")
	_ = syscall.Mount("sysfs", "/sys", "sysfs", 0, "")
	_ = syscall.Mount("devtmpfs", "/dev", "devtmpfs", 0, "")
	uptime := func() string { data, _ := os.ReadFile("/proc/uptime"); return strings.Fields(string(data))[0] }
	fmt.Printf("TEST init started at %s\n", uptime())
	_ = syscall.Sethostname([]byte("machine-7"))
	list, err := os.ReadFile("/etc/hearth/modules")
	if err != nil {
		fmt.Println("TEST error", err)
	}
	for name := range strings.FieldsSeq(string(list)) {
		ko, err := os.ReadFile(name)
		if err != nil {
			fmt.Println("TEST error", err)
			continue
		}
		args := []byte{0}
		_, _, errno := syscall.Syscall(syscall.SYS_INIT_MODULE, uintptr(unsafe.Pointer(&ko[0])), uintptr(len(ko)), uintptr(unsafe.Pointer(&args[0])))
		if errno != 0 {
			fmt.Println("TEST error", name, errno)
		}
	}
	fmt.Printf("TEST modules loaded at %s in %v\n", uptime(), time.Since(began))
	_ = os.MkdirAll("/mnt/base", 0o755)
	for range 100 {
		if _, err := os.Stat("/sys/block/vda"); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := os.Stat("/dev/vda"); err == nil {
		for i, dir := range []string{"/mnt/base", "/mnt/base/opt/hearth"} {
			dev := fmt.Sprintf("/dev/vd%c", 'a'+i)
			err := syscall.Mount(dev, dir, "erofs", syscall.MS_RDONLY, "")
			if err != nil {
				err = syscall.Mount(dev, dir, "ext4", syscall.MS_RDONLY, "noload")
			}
			if err != nil {
				fmt.Println("TEST error mount", dev, err)
			}
		}
		fmt.Printf("TEST mounted at %s\n", uptime())
		// What a scratch disk would be under a real agent: somewhere to write.
		if err := syscall.Mount("tmpfs", "/mnt/base/tmp", "tmpfs", 0, ""); err != nil {
			fmt.Println("TEST error tmpfs", err)
		}
		for _, script := range checks {
			t := time.Now()
			cmd := exec.Command("/bin/bash", "-c", script)
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: "/mnt/base"}
			cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
			out, err := cmd.CombinedOutput()
			fmt.Printf("TEST ran %q in %dms: %v: %q\n", script, time.Since(t).Milliseconds(), err, strings.TrimSpace(string(out)))
		}
	}
	fmt.Printf("TEST done at %s\n", uptime())
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	for {
		time.Sleep(time.Hour)
	}
}

// checks are run one after another in the image.
var checks = []string{
	"true",
	"git --version",
	"id runner",
	"/opt/hearth/bin/node20 -v",
	"/opt/hearth/bin/node24 -v",
	"npm -v",
	"python3 -c 'print(1+1)'",
	"cd /tmp && echo 'int main(){return 0;}' > a.c && gcc a.c && ./a.out && echo ok",
	"sudo -u runner sudo id -un",
	"locale 2>&1 | grep CTYPE",
	"command -v bash curl wget jq zstd tar unzip zip xz python3 make gcc g++ ssh gpg file less rsync ip ps pip3 > /dev/null",
	"apt-get -s install cowsay | grep -c Inst",
	"stat -c %a:%U /opt/hostedtoolcache /home/runner/work; cat /etc/resolv.conf",
	"apt-get -s -o Debug::pkgCacheGen=1 install cowsay 2>&1 | head -c 1500",
}
