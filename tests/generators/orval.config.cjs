module.exports = {
  tasks: {
    input: process.env.DOCUMENT,
    output: { target: "made.ts", client: "fetch", baseUrl: { getBaseUrlFromSpecification: true } },
  },
};
