// stripe-stateful-mock on loopback and a free port, which it says on standard output.
"use strict";

require("loglevel").setLevel("silent");
const { createExpressApp } = require("stripe-stateful-mock");

const server = createExpressApp().listen(0, "127.0.0.1", () => {
    console.log(server.address().port);
});
// A test run that was killed leaves nothing behind.
process.stdin.on("end", () => process.exit(0)).resume();
