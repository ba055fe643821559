// A link to the login has what opens it behind its #, which no server is told:
// it is taken out of the address and sent as the form would.
"use strict";
(() => {
  const secret = location.hash.slice(1);
  if (!secret) return;
  history.replaceState(null, "", location.pathname + location.search);
  document.getElementById("link").value = secret;
  document.getElementById("login").submit();
})();
