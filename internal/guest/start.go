package guest

import "syscall"

// Start starts a program that belongs to the machine and to no host's command. The
// channel takes its status when it has ended. It is how the process that serves starts
// one with [Options.ReapAll]: nothing else in it may wait for a child.
func (s *Server) Start(path string, argv []string, attr *syscall.ProcAttr) (<-chan syscall.WaitStatus, error) {
	ended := make(chan syscall.WaitStatus, 1)
	_, err := s.procs.start(path, argv, attr, func(st status) { ended <- st.ws })
	return ended, err
}
